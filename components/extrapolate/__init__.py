"""The extrapolate component."""
