"""What starts the pipeline: submissions that fire once, and the schedule."""
