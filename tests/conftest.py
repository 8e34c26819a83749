"""Settings of all tests."""

from hypothesis import settings

# Two busy cores make a deadline per example meaningless.
settings.register_profile("relex", deadline=None, print_blob=True)
settings.load_profile("relex")
