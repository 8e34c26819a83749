"""The outcome component."""
