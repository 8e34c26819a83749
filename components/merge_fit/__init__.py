"""The merge_fit component."""
