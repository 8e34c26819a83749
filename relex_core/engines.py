"""Other ways to run a spec than in this process. An orchestrator is another program: it is started, never imported."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from relex_core.errors import SpecError
from relex_core.extras import install
from relex_core.spec import RunSpec


def run_kfp_local(spec: RunSpec, *, shards: int = 1) -> int:
    """Run the compiled Kubeflow pipeline in processes on this machine; its log and errors go to stderr.

    Args:
        shards: processes that fit at the same time.

    Returns:
        Its exit status: as of `relex run`, but 1 for a step that failed after the gate.

    Raises:
        SpecError: Kubeflow's library is not installed.
    """
    if find_spec("kfp") is None:
        raise SpecError("kfp is not installed", where="--engine kfp-local", next_step=install("kfp"))
    command = [sys.executable, "-m", "relex_kfp", "run-local", "-", "--shards", str(shards)]
    text = spec.model_dump_json()
    return subprocess.run(command, input=text, text=True, stdout=subprocess.DEVNULL, check=False).returncode
