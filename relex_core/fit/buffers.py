"""Memory for a stripe: its weights at every step, and in the base."""

from __future__ import annotations

from dataclasses import dataclass

from relex_core.rows import Loaded, Rows, check


@dataclass(frozen=True)
class Buffers:
    """What one stripe after the other is loaded into."""

    steps: Rows
    """T rows."""
    base: Rows
    """One."""


@dataclass
class LoadedStripe:
    """A stripe in memory, or several packed ones."""

    buffers: Buffers
    steps: Loaded
    base: Loaded
    waiting: int
    """Parts that are not done yet."""

    def check(self) -> None:
        """Make sure of what was used. Raises as `relex_core.rows.check`."""
        check((self.steps, self.base))
