"""Memory for a stripe: its weights at every step, and in the base."""

from __future__ import annotations

from dataclasses import dataclass

from relex_core.fit.memory import Memory
from relex_core.rows import Loaded, Rows


@dataclass(frozen=True)
class Buffers:
    """For one stripe after the other."""

    steps: Rows
    base: Rows

    @classmethod
    def of(cls, memory: Memory, steps: int, row_bytes: int, base_row_bytes: int) -> Buffers:
        """Where the arithmetic can use it."""
        return cls(
            Rows(steps, row_bytes, memory.buffer, may_map=memory.maps),
            Rows(1, base_row_bytes, memory.buffer, may_map=memory.maps),
        )


@dataclass
class LoadedStripe:
    """A stripe in memory, or several packed ones."""

    buffers: Buffers
    steps: Loaded
    base: Loaded
    waiting: int
    """Parts that are not done yet."""

    def check(self) -> None:
        """Raises as `Loaded.check`."""
        self.steps.check()
        self.base.check()
