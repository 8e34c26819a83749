"""The trainer behind ``relex demo``: a tiny but real RLVR run on a CPU, saved at every step in verl's layout.

Reading order: `task` (all numbers), `questions` (the task and its splits), `model`, `supervised` (the base),
`grpo` (one RL step), `trajectory` (the run on disk, and how it goes on), `train` (the whole).

    >>> run = train_demo_run(Path("relex-demo"), DEMO_TASKS["format"])                  # steps 1..t_cut
    >>> run = train_demo_run(Path("relex-demo"), DEMO_TASKS["format"], to_step=300)     # what RL really does next

Importing this package loads no torch.
"""

from relex_core.demo.task import DEMO_TASKS, DemoTask
from relex_core.demo.train import DemoRun, train_demo_run

__all__ = ["DEMO_TASKS", "DemoRun", "DemoTask", "train_demo_run"]
