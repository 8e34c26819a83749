"""Kubeflow components: each a signature, a docstring and one call into relex_core.

Every function is a lightweight Python component: its source travels in the compiled pipeline, so it imports what it
needs inside. `BASE_IMAGE` only names the image; whoever compiles a pipeline sets the one that its cluster can pull.
Weights never pass through Kubeflow: components hand on URIs, and artifacts are small.
"""

BASE_IMAGE = "relex-cpu:0.1.0"
"""What `make images` builds. kfp itself is in it, so nothing is installed when a pod starts."""
