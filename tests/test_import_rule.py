"""Who may import whom: ARCHITECTURE.md's rule, read from the source and seen in real processes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relex_core.extras import EXTRA_OF

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "relex_core"

# The order of the modules and packages of relex_core (a package: its modules but those that stand here by themselves).
# Each imports only from itself and from those above it:
# at module level, inside functions, and for type checking alike. There is no exception; the imports inside functions
# of cli, run.py and fit/__init__.py keep numpy and torch out until they are needed; they do not get round this order.
ORDER = (
    "__init__",  # the version; imports nothing
    "errors",
    "extras",
    "layout",
    "parallel",
    "progress",
    "shapes",
    "storage",
    "stored_json",
    "json_text",
    "yaml_text",
    "spec",
    "manifest",
    "questions",
    "checkpoints",
    "fit.columns",
    "fit.artifact",
    "groups",
    "stripes",
    "plan",
    "events",
    "observe",
    "collect",
    "inspect",
    "capture",
    "claim",
    "watch",
    "dtypes",
    "kernels",
    "mapped",
    "rows",
    "elements",
    "lora",
    "fit",
    "forecast",
    "probe",
    "mixes",
    "guidance",
    "recipes",
    "candidate",
    "dry_run",
    "spatial",
    "mixing",
    "mix_sources",
    "spatial_rank",
    "lora.sources",
    "lora.output",
    "extrapolate",
    "evaluate",
    "decide",
    "report",
    "publish",
    "notify",
    "gate",
    "stages",
    "engines",
    "run",
    "targets",
    "tables",
    "forecast_tables",
    "demo",
    "cli",
    "__main__",
)

# What an install without extras must be able to import: packages mean all of their modules.
BARE = (
    *ORDER[1 : ORDER.index("observe")],
    *("observe", "collect", "inspect", "capture", "claim", "watch", "targets"),
    *("fit.__init__", "lora.plan", "forecast.__init__", "forecast.measures"),
    *(
        "forecast.results",
        "forecast.names",
        "probe.__init__",
        "probe.ranges",
        "mixes",
        "guidance",
        "recipes",
        "candidate",
    ),
    *("dry_run", "publish", "notify", "gate", "stages", "engines"),
    *("report.__init__", "run", "tables", "forecast_tables", "demo.__init__", "cli"),
)
NOT_BARE = {"torch", "numpy", "scipy", "transformers", "safetensors", "threadpoolctl", "jaxtyping", "ml_dtypes"}

# With numpy and scipy, but without torch, which takes seconds to load: deciding and reporting run on small machines,
# and on CPUs the fit and the candidates are computed by numpy.
LIGHT = (
    "fit.loop",
    "fit.merging",
    "fit.adapters",
    "lora",
    "extrapolate",
    "decide",
    "evaluate.__init__",
    "forecast",
    "probe",
    "report",
)
NOT_LIGHT = {"torch", "transformers"}

ORCHESTRATORS = {"kfp", "airflow"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name."""

    module: str
    line: int
    at_import: bool
    """Executed when the importing module is imported: neither in a function nor for type checkers only."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_of(path: Path) -> list[Import]:
    """Every import statement of a file, wherever it stands."""
    package = module_name(path).split(".")[:-1]
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            )
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                prefix = package[: len(package) - child.level + 1] if child.level else []
                source = ".".join([*prefix, *([child.module] if child.module else [])])
                for alias in child.names:
                    inner = f"{source}.{alias.name}"
                    found.append(Import(inner if exists(inner) else source, child.lineno, at_import))
            visit(child, at_import and not deferred)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def unit(module: str) -> str:
    """The entry of ORDER that covers a module: relex_core.fit.loop -> fit; relex_core itself -> __init__."""
    parts = module.split(".")[1:] or ["__init__"]
    return next((name for end in (2, 1) if (name := ".".join(parts[:end])) in ORDER), parts[0])


SOURCES = sorted(PACKAGE.rglob("*.py"))
OWN_IMPORTS = {
    module_name(path): [found for found in imports_of(path) if found.module.partition(".")[0] == "relex_core"]
    for path in SOURCES
}


def test_every_module_has_its_place_in_the_order() -> None:
    there = {unit(module_name(path)) for path in SOURCES}
    assert there <= set(ORDER), f"give these their place in ORDER: {sorted(there - set(ORDER))}"
    assert set(ORDER) <= there, f"no longer there: {sorted(set(ORDER) - there)}"


def test_the_architecture_shows_this_order() -> None:
    """A folder of the table stands for what ORDER calls by its name; parts in brackets are told apart there only."""
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("| module | what it is | needs |")[2].partition("\n\n")[0]
    cells = [re.sub(r"\(.*?\)", "", line.split("|")[1]) for line in table.splitlines()[2:]]
    shown = [name.rstrip("/").replace("/", ".") for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    assert shown == [name for name in ORDER if not name.startswith("__")]


@pytest.mark.parametrize("place", range(len(ORDER)), ids=ORDER)
def test_arrows_point_upwards_only(place: int) -> None:
    allowed = set(ORDER[: place + 1])
    downwards = [
        f"{module}:{found.line} imports {found.module}"
        for module, imports in OWN_IMPORTS.items()
        if unit(module) == ORDER[place]
        for found in imports
        if unit(found.module) not in allowed
    ]
    assert not downwards, "\n".join(downwards)


def test_no_cycles_within_a_package() -> None:
    graph = {
        module.removesuffix(".__init__"): {found.module for found in imports if found.at_import}
        for module, imports in OWN_IMPORTS.items()
    }
    finished: set[str] = set()

    def descend(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in finished:
            for imported in sorted(graph.get(module, ())):
                descend(imported, (*trail, module))
            finished.add(module)

    for module in graph:
        descend(module, ())


def test_the_core_knows_no_orchestrator() -> None:
    found = [
        f"{path}:{found.line} imports {found.module}"
        for path in SOURCES
        for found in imports_of(path)
        if found.module.partition(".")[0] in ORCHESTRATORS | {"relex_kfp", "components", "pipelines"}
    ]
    assert not found, "\n".join(found)


def test_a_missing_library_is_named_with_its_extra() -> None:
    """What is imported beyond a bare install (and jaxtyping, which only tests load) stands in the table of extras."""
    bare = {"click", "google", "google_crc32c", "pydantic", "requests", "rich", "urllib3", "yaml", "zstandard"}
    libraries = {found.module.partition(".")[0] for path in SOURCES for found in imports_of(path)}
    beyond = libraries - set(sys.stdlib_module_names) - bare - {"relex_core", "jaxtyping"}
    through_find_spec = {"kfp"}
    assert beyond | through_find_spec == set(EXTRA_OF)


def modules(names: tuple[str, ...]) -> Iterator[str]:
    """Full names; a package stands for all of its modules."""
    for name in names:
        path = PACKAGE.joinpath(*name.split("."))
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        yield from (module_name(file).removesuffix(".__init__") for file in files)


IMPORT_ONE_BY_ONE = """
import importlib, json, sys
names, forbidden = json.loads(sys.argv[1])
guilty = {}
for name in names:
    importlib.import_module(name)
    loaded = sorted({module.partition(".")[0] for module in sys.modules} & set(forbidden))
    if loaded:
        guilty[name] = loaded
        break
print(json.dumps([guilty, len(sys.modules)]))
"""


@pytest.mark.parametrize(
    ("names", "forbidden"),
    [(BARE, NOT_BARE | ORCHESTRATORS), (LIGHT, NOT_LIGHT | ORCHESTRATORS)],
    ids=["bare install", "no torch"],
)
def test_importing_loads_nothing_heavy(names: tuple[str, ...], forbidden: set[str]) -> None:
    argument = json.dumps([list(modules(names)), sorted(forbidden)])
    command = [sys.executable, "-c", IMPORT_ONE_BY_ONE, argument]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    guilty, count = json.loads(result.stdout)
    assert not guilty
    assert count > 100  # it did import


def test_the_command_line_loads_google_only_for_gs_locations() -> None:
    code = "import sys; from relex_core import cli, dry_run, inspect; print('google.cloud.storage' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_module_can_be_imported_first() -> None:
    """No module works only because another one was imported before it (the light ones; heavy ones import these)."""
    for name in ("fit.artifact", "checkpoints.reader", "plan", "candidate", "tables", "run"):
        subprocess.run([sys.executable, "-c", f"import relex_core.{name}"], cwd=ROOT, check=True)
