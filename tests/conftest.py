"""Settings of all tests."""

from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and dtypes in the signatures of the pure modules are checked at every call.
install_import_hook(["relex_core.fit.gram", "relex_core.fit.basis", "relex_core.fit.line"], "beartype.beartype")

# Two busy cores make a deadline per example meaningless.
settings.register_profile("relex", deadline=None, print_blob=True)
settings.load_profile("relex")
