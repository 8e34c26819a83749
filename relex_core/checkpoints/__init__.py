"""Checkpoints on storage: which folder is which step, what lies in its files, and how to read and write it.

files -> layouts.find_steps -> markers, checkpoint.open_checkpoint -> reader.TrajectoryReader
"""
