"""Servers that stand in for Google Cloud Storage in tests and benchmarks: a real fake, and a faulty front for it.

Use in a test module:

    from gcs.server import fake_gcs, new_bucket  # fake_gcs is a pytest fixture
"""
