"""The decide component."""
