"""What `relex watch --then` can do with a complete window.

`run` and `print` are here. Others come from installed packages that declare an entry point of the group
`relex.targets`: a function of (RunSpec, WindowManifest), safe to call again with the same window. If it has an
attribute `check`, that is called first, without arguments: to refuse settings now, not when the window is complete.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec

from relex_core.errors import SpecError
from relex_core.extras import install
from relex_core.manifest import WindowManifest
from relex_core.spec import RunSpec
from relex_core.watch import Action

GROUP = "relex.targets"

NEEDS = {"run": ("numpy", "fit"), "kfp": ("kfp", "kfp")}
"""By action: a module that a bare install lacks, and the extra that brings it."""


def target(name: str, spec: RunSpec) -> Action:
    """The action of that name, after a look at what it is going to need for this spec.

    Raises:
        SpecError: nothing of that name is installed, or what it needs is not; or its settings are wrong.
    """
    evaluation = spec.evaluation if name == "run" else None
    module, extra = NEEDS.get(name, ("relex_core", ""))
    if find_spec(module) is None:  # now, not when the window is complete
        needed = "eval" if evaluation else extra
        raise SpecError(f"{module} is not installed", where=f"--then {name}", next_step=install(needed))
    if evaluation is not None:
        from relex_core.evaluate.ready import refuse_unready  # imports numpy

        refuse_unready(evaluation)
    built_in: dict[str, Action] = {"run": _run, "print": _print}
    if name in built_in:
        return built_in[name]
    for entry in entry_points(group=GROUP, name=name):
        action: Action = entry.load()
        getattr(action, "check", lambda: None)()
        return action
    raise SpecError(
        f"nothing is installed that could be done as {name!r}",
        expected=", ".join(["run", "print", *sorted(entry.name for entry in entry_points(group=GROUP))]),
        next_step=f"for kfp and vertex, {install('kfp')}",
    )


def _run(spec: RunSpec, _manifest: WindowManifest) -> None:
    from relex_core.run import run  # imports numpy, which a bare install lacks

    run(spec)


def _print(_spec: RunSpec, _manifest: WindowManifest) -> None:
    """Nothing: what the command prints at its end is what was asked for."""
