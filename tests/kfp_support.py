"""A small real RL run whose models answer from scripts, so that a whole pipeline takes seconds and ends as wished."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import SMALL

from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import open_store, read_bytes, write_bytes

QUESTIONS = {"select": 64, "confirm": 80}
T_CUT = 8
MEASURED = ("seconds", "bytes_read", "peak_rss_bytes")
"""Fields of fit.json that measure the process, not the weights."""


def scripted_run(folder: Path, *, candidates: float, last_observed: float) -> Path:
    """Base and trajectory below `folder`; candidates take the base's script along, and with it its share of answers.

    Args:
        candidates: share of the questions that they, and the base, answer.
        last_observed: share that the last observed checkpoint answers.
    """
    shutil.copytree(SMALL / "run", folder / "trajectory")
    for name, count in QUESTIONS.items():
        rows = [{"prompt": f"{name} {i}", "answer": str(i)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _script(folder / "trajectory/base", candidates)
    _script(folder / f"trajectory/global_step_{T_CUT}/actor/huggingface", last_observed)
    return folder


def _script(model: Path, share: float) -> None:
    script = {}
    for name, count in QUESTIONS.items():
        known = random.Random(name).sample(range(count), round(share * count))
        script |= {f"{name} {i}": str(i) if i in known else "x" for i in range(count)}
    (model / "script.json").write_text(json.dumps(script))


def spec_data(**sections: Any) -> dict[str, Any]:
    def split(name: str) -> dict[str, Any]:
        return {"task": {"name": name, "file": f"{name}.jsonl"}, "batch_size": 4}

    return {
        "base": "trajectory/base",
        "trajectory": "trajectory",
        "window": {"t_cut": T_CUT},
        "fit": {"group_size": 20_000},
        "candidates": {"target_steps": [20, 40]},
        "evaluation": {"backend": "scripted", "select": split("select"), "confirm": split("confirm")},
        "decision": {"beat_base": False},  # the base's script goes along into the candidates: they cannot beat it
        **sections,
    }


def make_spec(folder: Path, run: str = "run", **sections: Any) -> RunSpec:
    return resolve_spec(spec_data(**sections), where="spec", folder=folder, out=str(folder / run))


def undecided(folder: Path) -> dict[str, Any]:
    """Sections of a spec whose verdict is `not_ready`; processes must be able to import what lies in `folder`."""
    grader = "def grade(completion, answer):\n    return 'timeout' if int(answer) % 2 else completion == answer\n"
    (folder / "slow_grader.py").write_text(grader)
    evaluation = spec_data()["evaluation"]
    evaluation["confirm"]["task"]["grader"] = "slow_grader:grade"
    return {"evaluation": evaluation}


def upload(folder: Path, uri: str) -> None:
    """Copy what a folder holds to below `uri`."""
    store = open_store(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            write_bytes(store, path.relative_to(folder).as_posix(), path.read_bytes())


def download(uri: str, folder: Path) -> Path:
    """Copy what lies below `uri` to a folder."""
    store = open_store(uri)
    for info in store.list():
        path = folder / info.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read_bytes(store, info.name))
    return folder


def sections_on_gcs(uri: str) -> dict[str, Any]:
    """Sections of a spec for a `scripted_run` that was uploaded to `uri`."""
    evaluation = spec_data()["evaluation"]
    for split in ("select", "confirm"):
        evaluation[split]["task"]["file"] = f"{uri}/{split}.jsonl"
    return {"base": f"{uri}/trajectory/base", "trajectory": f"{uri}/trajectory", "evaluation": evaluation}


def result_files(run: Path, uri: str = "") -> dict[str, bytes]:
    """What a run directory holds, without what names the directory itself or tells when and how fast it was filled.

    Args:
        uri: where it was when it was filled, if not here.
    """
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    left_out = ("events.jsonl", "spec.json", "report.html")
    data = {name: path.read_bytes() for name, path in files.items() if name not in left_out}
    for name, measured in {"fit/fit.json": MEASURED, "decision.json": ("cost", "rules_digest")}.items():
        fields = json.loads(data[name])
        data[name] = json.dumps({key: value for key, value in fields.items() if key not in measured}).encode()
    outcome = json.loads(data["published.json"])
    outcome["checkpoint_uri"] = outcome["checkpoint_uri"].removeprefix(uri or str(run))
    data["published.json"] = json.dumps({k: v for k, v in outcome.items() if k != "spec_digest"}).encode()
    return data


def named(places: Sequence[str]) -> str:
    """What a stage reads or writes, as the docs say it."""
    keys = ("base", "trajectory", "questions")
    return ", ".join(place if place in keys else f"`{place}`" for place in places) or "nothing"
