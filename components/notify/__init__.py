"""The notify component."""
