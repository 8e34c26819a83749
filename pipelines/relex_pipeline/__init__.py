"""One pipeline, compiled for several kinds of clusters."""
