"""The relex pipeline for Kubeflow and the pieces that trigger it."""
