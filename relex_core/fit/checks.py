"""What only the weights can show to be wrong: non-finite values, identical steps, another base."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from relex_core.checkpoints.reader import Piece, TensorReader, open_step
from relex_core.collect import identical_steps
from relex_core.dtypes import finite
from relex_core.errors import DataError, WindowError
from relex_core.fit.group_results import GroupResult
from relex_core.fit.packing import Part
from relex_core.fit.summary import finite_sum
from relex_core.manifest import WindowManifest

log = logging.getLogger("relex")

# Float32 products resolve squared distances down to about this share of the squared norms; pairs of steps that are
# closer are compared byte by byte.
CLOSE = 1e-5
COMPARED_BYTES = 8 * 2**20

# A base is taken for another model's when the window starts farther from it, for each step, than this many times the
# run's own largest move for each step (5 is usual: Adam's first steps are its largest) ...
FIRST_MOVE = 20.0
# ... and that distance is more than this share of the weights' norm, which rounding a float32 base to bf16 (0.2 %)
# does not reach.
FAR_FROM_BASE = 0.02

# Models that have nothing in common lie about √2 of a norm apart; reinforcement learning moves a few percent at most.
ANOTHER_MODEL = 0.5


def refuse_non_finite(part: Part, manifest: WindowManifest) -> None:
    """Name the step and tensor of a value that spoiled a Gram matrix.

    Raises:
        DataError: the part's Gram matrix is not finite.
    """
    if part.grams is None or np.isfinite(part.grams).all():
        return
    name = part.segment.tensor.name
    if not finite(part.base):
        raise unsound_base(name, manifest)
    for step, row in zip(manifest.steps, part.slices, strict=True):
        if not finite(row):
            raise DataError(
                f"step {step} holds NaN or Inf in tensor {name}",
                where=f"step {step}, tensor {name}",
                expected="finite weights",
                next_step="the run diverged there: set window.t_cut below this step, or remove the checkpoint",
            )
    raise DataError(
        f"the deltas of tensor {name} are too large for float32 products",
        where=f"tensor {name}",
        expected="deltas of a training run",
        next_step="check that the base and the checkpoints belong together",
    )


def refuse_non_finite_directions(tensor: str, directions: np.ndarray, manifest: WindowManifest) -> None:
    """Refuse NaN or Inf of the base that no step replaced: columns that never changed may be left out of Gram matrices.

    Frozen tensors may hold what they like; they have no directions.

    Raises:
        DataError: the directions are not finite, although the Gram matrix is.
    """
    if not finite(directions):
        raise unsound_base(tensor, manifest)


def unsound_base(tensor: str, manifest: WindowManifest) -> DataError:
    """What refuses a base that holds NaN or Inf in a tensor."""
    return DataError(
        f"the base holds NaN or Inf in tensor {tensor}",
        where=manifest.base.uri,
        expected="finite weights",
        next_step="use a sound base",
    )


class FittedSoFar:
    """The sum of the groups fitted so far; what it shows to be wrong is refused as soon as it shows it."""

    def __init__(self, manifest: WindowManifest) -> None:
        self._manifest = manifest
        self.gram = np.zeros((len(manifest.steps),) * 2)
        """"T T", float64: of all weights together."""
        self._base_square = 0.0
        self._numel = {tensor.name: math.prod(tensor.shape) for tensor in manifest.tensors}
        self._added = 0

    def add(self, result: GroupResult) -> None:
        """Take one group more.

        Raises:
            WindowError: two steps hold identical weights, or this is not the base that the run started from.
        """
        moved_before = self.gram.any()
        self.gram += sum(result.grams.values())
        self._base_square += finite_sum(result.base_squares.values())
        self._added += sum(self._numel[name] for name in result.grams)
        if 2 * self._added >= sum(self._numel.values()):  # a few tensors may have moved in their own way
            self._refuse_another_base()
        if self.gram.any() and not moved_before:
            refuse_identical_steps(self.gram, self._manifest)

    def complete(self) -> None:
        """Look at all groups together.

        Raises:
            WindowError: as `add`; or the base holds the weights of an observed step.
        """
        self._refuse_another_base()
        refuse_identical_steps(self.gram, self._manifest)
        refuse_base_of_a_later_step(self.gram, self._manifest)
        warn_of_a_doubtful_base(self.gram, self._base_square, self._manifest)

    def _refuse_another_base(self) -> None:
        refuse_another_base(self.gram, self._base_square, self._manifest.steps, self._manifest.base.uri)


def refuse_another_base(gram: np.ndarray, base_square: float, steps: Sequence[int], base: str) -> None:
    """Refuse a base that is much farther from the run than the run ever moves.

    Args:
        gram: "T T", float64, summed over the tensors fitted so far.
        base_square: ‖W_0‖² of the same tensors.

    Raises:
        WindowError: this is not the base that the run started from.
    """
    squares = np.diag(gram)
    moves = np.sqrt(np.maximum(squares[1:] + squares[:-1] - 2 * np.diag(gram, 1), 0.0))
    speed = float((moves / np.diff(steps)).max())
    first = float(np.sqrt(squares[0]))
    if first > FIRST_MOVE * steps[0] * speed and first > FAR_FROM_BASE * np.sqrt(base_square) and speed > 0:
        raise WindowError(
            "this is not the base that the run started from: step "
            f"{steps[0]} lies {first:.3g} from it, but the run moves at most {speed:.3g} a step",
            where=base,
            expected="the weights that step 1 of the run was trained from",
            next_step="point `base` at the model that the RL run loaded",
        )


def refuse_base_of_a_later_step(gram: np.ndarray, manifest: WindowManifest) -> None:
    """Refuse a base that holds the weights of an observed step. At the first step that may be a warm-up from 0.

    Args:
        gram: "T T", float64, summed over all tensors: some of them may well come back to where they began.

    Raises:
        WindowError: this is not the base that the run started from.
    """
    squares = np.diag(gram)
    same = [step for step, square in zip(manifest.steps[1:], squares[1:], strict=True) if square == 0]
    if same and squares.any():
        raise WindowError(
            f"the base holds the weights of step {same[0]}",
            where=manifest.base.uri,
            expected="the weights that step 1 of the run was trained from",
            next_step="point `base` at the model that the RL run loaded",
        )


def warn_of_a_doubtful_base(gram: np.ndarray, base_square: float, manifest: WindowManifest) -> None:
    """Warn of a base from beyond the window, to which the run comes closer; and of one about as far as another model.

    Args:
        gram: "T T", float64, summed over all tensors.
        base_square: ‖W_0‖².
    """
    first, last = np.sqrt(np.diag(gram))[[0, -1]]
    norm = math.sqrt(base_square)
    if first > ANOTHER_MODEL * norm:
        log.warning(
            "step %d lies %.3g from the base, whose norm is %.3g: was the run started from %s?",
            *(manifest.steps[0], first, norm, manifest.base.uri),
        )
    if first > last:
        log.warning(
            "step %d lies %.3g from the base, but step %d only %.3g: is %s a later checkpoint of the run?",
            *(manifest.steps[0], first, manifest.steps[-1], last, manifest.base.uri),
        )


def refuse_identical_steps(gram: np.ndarray, manifest: WindowManifest) -> None:
    """Compare byte by byte the steps that the Gram matrix cannot tell apart.

    Args:
        gram: "T T", float64, summed over the tensors fitted so far.

    Raises:
        WindowError: two steps hold identical weights.
    """
    squares = np.diag(gram)
    distance = squares[:, None] + squares[None, :] - 2 * gram
    close = distance <= CLOSE * np.maximum(squares[:, None], squares[None, :])
    opened = cache(lambda row: open_step(manifest.checkpoints[row]))
    for later, second in enumerate(manifest.checkpoints):
        for earlier in map(int, np.flatnonzero(close[later, :later])):
            if _same_bytes(opened(earlier), opened(later)):
                raise identical_steps(manifest.steps[earlier], second.step, second.uri)


def _same_bytes(first: TensorReader, second: TensorReader) -> bool:
    a, b = bytearray(COMPARED_BYTES), bytearray(COMPARED_BYTES)
    for name, stored in first.tensors.items():
        total = stored.nbytes
        for start in range(0, total, COMPARED_BYTES):
            count = min(COMPARED_BYTES, total - start)
            piece = Piece(name, start, start + count, 0)
            first.read([piece], memoryview(a))
            second.read([piece], memoryview(b))
            if a[:count] != b[:count]:
                return False
    return True
