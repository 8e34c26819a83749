"""The relex pipeline for Kubeflow, its profiles and compiled YAML, and the pieces that trigger it."""
