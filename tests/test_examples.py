"""Every spec in examples/ is read, and the one whose data are here is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relex_core.spec import load_spec

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_specs_are_valid(path: Path) -> None:
    assert load_spec(path).window.t_cut > 0


def test_the_tiny_run_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "relex_core",
        "run",
        str(EXAMPLES / "tiny-rlvr.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "relex-step00080-scale0.50" in shown and "pinned-step00080-scale1.00" in shown
    assert len(list((tmp_path / "run" / "candidates").glob("*/relex.json"))) == 6 + 1 + 1 + 3 + 3 + 1 + 6
