"""The forecast component."""
