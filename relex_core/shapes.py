"""Shapes in signatures, written as jaxtyping's: Float64[np.ndarray, "T T"].

The tests load jaxtyping before relex and check every call against them. Nothing else does: it takes longer to load than
numpy, and annotations are not evaluated. To type checkers jaxtyping's own types are `Annotated`, too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "jaxtyping" not in sys.modules:
    from typing import Annotated as Float
    from typing import Annotated as Float32
    from typing import Annotated as Float64
    from typing import Annotated as UInt32
else:
    from jaxtyping import Float, Float32, Float64, UInt32

__all__ = ["Float", "Float32", "Float64", "UInt32"]
