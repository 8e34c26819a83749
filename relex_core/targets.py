"""What `relex watch --then` can do with a complete window.

`run` and `print` are here. Others come from installed packages that declare an entry point of the group
`relex.targets`: a function of (RunSpec, WindowManifest), safe to call again with the same window.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from relex_core.errors import SpecError
from relex_core.manifest import WindowManifest
from relex_core.spec import RunSpec
from relex_core.watch import Action

GROUP = "relex.targets"


def target(name: str) -> Action:
    """The action of that name.

    Raises:
        SpecError: nothing of that name is installed.
    """
    built_in: dict[str, Action] = {"run": _run, "print": _print}
    if name in built_in:
        return built_in[name]
    for entry in entry_points(group=GROUP, name=name):
        action: Action = entry.load()
        return action
    raise SpecError(
        f"nothing is installed that could be done as {name!r}",
        expected=", ".join(["run", "print", *sorted(entry.name for entry in entry_points(group=GROUP))]),
        next_step='pip install "relex[kfp]" brings kfp and vertex',
    )


def _run(spec: RunSpec, _manifest: WindowManifest) -> None:
    from relex_core.run import run  # imports numpy, which a bare install lacks

    run(spec)


def _print(_spec: RunSpec, _manifest: WindowManifest) -> None:
    """Nothing: what the command prints at its end is what was asked for."""
