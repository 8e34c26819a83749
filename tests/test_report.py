"""The report's numbers, sentences and files; how the page looks in a browser is tests/test_report_page.py."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from report_runs import (
    FAR,
    NEAR,
    answers,
    evaluation_section,
    tensor_names,
    write,
    write_evaluation,
    write_fitted_run,
    write_measured_run,
    write_spec,
    write_window,
)

import relex_core.run
from relex_core.decide import decide
from relex_core.errors import DataError, WindowNotReady
from relex_core.evaluate.candidates import Candidate
from relex_core.report import build_report, report
from relex_core.report.charts import draw
from relex_core.report.files import figure
from relex_core.report.gain import adjusted_p, condition_name
from relex_core.report.library import library
from relex_core.report.text import label_of
from relex_core.report.view import ReportData, Table
from relex_core.report.weights import walk_spectrum
from relex_core.storage import exists, open_store

STEPS = range(1, 25)
TARGETS = {"target_steps": [100, 300]}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fitted and forecast run of two layers, one tensor of which never moved; its evaluation is still to come."""
    run = str(tmp_path_factory.mktemp("report") / "run")
    frozen = ["model.norm.weight"]
    sections = {"evaluation": evaluation_section(), "candidates": TARGETS, "cost": {"gpu_hours_per_step": 0.5}}
    return write_fitted_run(run, tensor_names(2), STEPS, frozen=frozen, **sections)


@pytest.fixture
def run(fitted: str, tmp_path: Path) -> str:
    """A copy of it, as another run directory."""
    copy = tmp_path / "run"
    for path in Path(fitted).rglob("*.json"):
        target = copy / path.relative_to(fitted)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return str(copy)


def titles(data: ReportData) -> list[str]:
    return [notice.title for notice in data.notices]


def table(data: ReportData, title: str) -> Table:
    return next(each for section in data.sections for each in section.tables if each.title == title)


def test_a_label_tells_a_cut_candidate_from_the_whole_one() -> None:
    whole = Candidate("relex-step00300-scale0.50", "", "", 300, "relex", 0.5)
    cut = replace(whole, name="relex-step00300-scale0.50-srank8", spatial_rank=8)
    assert [label_of(whole), label_of(cut)] == ["relex 300, scale 0.5", "relex 300, scale 0.5, spatial rank 8"]


def test_a_promotion_in_words(run: str) -> None:
    decision = decide(write_measured_run(run))
    assert decision.decision == "promote"
    data = build_report(run)
    confirmed = {s.candidate: s.mean for s in decision.confirm}
    headline = data.verdict.headline.replace("\N{NO-BREAK SPACE}", " ")
    assert headline == (
        f"Promote {NEAR}: {100 * confirmed[NEAR]:.1f} % correct against {100 * confirmed['last_observed']:.1f} %; "
        "that saves 76 of 100 training steps"
    )
    low, high = decision.evidence[0].interval
    assert f"between {100 * low:.1f} and {100 * high:.1f} points better" in data.verdict.summary[0]
    assert "On 400 confirmation questions (addition), which chose nothing" in data.verdict.summary[0]
    assert "was not measured; that it is better than what you have was." in data.verdict.summary[1]
    row, against_base = data.verdict.plots[0].rows
    assert (row["low"], row["high"], row["met"]) == (low, high, "condition met")
    assert against_base["difference"] == decision.evidence[1].difference
    hours = {fact.label: fact.value for section in data.sections for fact in section.facts}
    assert hours["Training saved, GPU hours"] == "38"


@pytest.mark.parametrize("rule", [{"rule": "non_inferior", "margin": 0.05}, {"min_gain": -0.05}])
def test_a_promotion_without_a_gain_claims_none(run: str, rule: dict[str, object]) -> None:
    write_spec(run, 24, evaluation=evaluation_section(), candidates=TARGETS, decision=rule)
    assert decide(write_measured_run(run, finalist=0.3)).decision == "promote"
    [*_, saved] = build_report(run).verdict.summary
    assert saved.endswith("was not measured; that it is at most 5.0 points worse than what you have was.")


def test_the_true_run_is_named_where_it_is_known(run: str) -> None:
    decide(write_measured_run(run, **{"rl-step00100": 0.7}))
    data = build_report(run)
    assert "RL itself, trained on to step 100, reached" in data.verdict.summary[1]
    accuracy = next(plot for plot in data.plots if plot.id == "accuracy-over-steps")
    [own] = [row for row in accuracy.rows if row["kind"] == "RL itself, trained on"]
    assert own["step"] == 100


def test_keeping_is_a_normal_outcome_with_reasons(run: str) -> None:
    decision = decide(write_measured_run(run, finalist=0.3))
    data = build_report(run)
    assert data.verdict.tone == "neutral"
    assert data.verdict.headline == "Keep step 24: no extrapolated checkpoint was shown to be better"
    assert "does not lie wholly above the threshold of +0.0 points: anywhere from" in data.verdict.summary[1]
    assert "normal outcome" in data.verdict.summary[1]
    lost = {row[0]: row[2] for row in table(data, "Not promoted, and why").rows}
    assert lost[NEAR] == decision.reason
    assert lost[FAR].startswith(f"on the selection questions {NEAR} scored at least as high")


def test_a_candidate_that_only_undoes_what_rl_did_is_held_against_the_base(run: str) -> None:
    decide(write_measured_run(run, finalist=0.5, base=0.5))
    verdict = build_report(run).verdict
    assert verdict.headline.endswith("the best candidate passes on addition, but not on addition against the base")
    assert "On addition (against the base) the interval does not lie wholly above the threshold" in verdict.summary[1]
    met = {row["label"]: row["met"] for row in verdict.plots[0].rows}
    assert met == {"addition (confirmation)": "condition met", "addition (against the base)": "not met"}
    assert verdict.plots[0].title.endswith("beat the last observed checkpoint and the base?")
    write_spec(run, 24, evaluation=evaluation_section(), candidates=TARGETS, decision={"beat_base": False})
    assert decide(run).decision == "promote"
    assert len(build_report(run).verdict.plots[0].rows) == 1


def test_of_two_tasks_only_the_one_that_the_base_wins_is_in_the_way(run: str) -> None:
    write_spec(run, 24, evaluation=evaluation_section(("addition", "algebra")), candidates=TARGETS)
    write_measured_run(run)
    for name, rate in {"base": 0.5, "last_observed": 0.3, NEAR: 0.3}.items():
        write_evaluation(run, name, "confirm", answers(rate), "algebra")
    assert decide(run).decision == "keep_observed"
    verdict = build_report(run).verdict
    assert verdict.headline.endswith("the best candidate passes on addition, but not on algebra against the base")


def test_a_candidate_with_a_time_out_did_not_leave_the_search_early(run: str) -> None:
    write_measured_run(run)
    write_evaluation(run, FAR, "select", [None, *answers(0.35)[1:]])
    decide(run)
    reasons = {row[0]: row[2] for row in table(build_report(run), "Not promoted, and why").rows}
    assert reasons[FAR].startswith(f"on the selection questions {NEAR} scored at least as high")
    write_evaluation(run, FAR, "select", [None, *answers(0.35)[1:100]])
    decide(run)
    reasons = {row[0]: row[2] for row in table(build_report(run), "Not promoted, and why").rows}
    assert reasons[FAR] == "left the search early: after 100 questions others were ahead"


def test_a_gain_that_a_guard_blocks_is_not_called_no_gain(run: str) -> None:
    tasks = ("addition", "algebra")
    write_spec(run, 24, evaluation=evaluation_section(tasks, guards=["safety"]), candidates=TARGETS)
    write_measured_run(run)
    for name, rate in {"base": 0.1, "last_observed": 0.3, NEAR: 0.3}.items():
        write_evaluation(run, name, "confirm", answers(rate), "algebra")
    for name, rate in {"last_observed": 0.5, NEAR: 0.4}.items():
        write_evaluation(run, name, "guard", answers(rate), "safety")
    assert decide(run).decision == "keep_observed"
    verdict = build_report(run).verdict
    assert verdict.headline == "Keep step 24: the best candidate passes on addition, but not on safety"
    assert "the surest of 2 tasks" in verdict.summary[0]
    assert "On safety (guard) the interval" in verdict.summary[1]
    assert "algebra" not in verdict.summary[1]  # no gain there is no obstacle: one task is enough


def test_few_questions_and_coarse_tests_are_said(run: str) -> None:
    decide(write_measured_run(run, n=40))
    assert {"Few questions", "Small gains are invisible"} <= set(titles(build_report(run)))
    decide(write_measured_run(run, n=2000))
    assert titles(build_report(run)) == []


def test_time_outs_and_cut_answers_are_said(run: str) -> None:
    write_measured_run(run)
    write_evaluation(run, NEAR, "confirm", [*answers(0.35, 300, seed=1), *[None] * 100], finish="length")
    assert decide(run).decision == "not_ready"
    data = build_report(run)
    assert data.verdict.tone == "caution"
    assert {"Answers were cut off", "Grading timed out"} <= set(titles(data))
    rates = table(data, "Answers that were cut, missing or not graded")
    assert rates.rows[0][:2] == (NEAR, "addition (confirmation)")
    assert rates.rows[0][2].startswith("100.0") and rates.rows[0][4].startswith("25.0")


@pytest.mark.parametrize("finalists", [(0.33, 0.45, 0.36), (0.5, 0.5, 0.5), (0.3, 0.3, 0.38), (0.34, 0.35, 0.36)])
def test_adjusted_p_values_say_what_the_verdict_says(run: str, finalists: tuple[float, ...]) -> None:
    tasks = ("addition", "b", "c")
    write_spec(run, 24, evaluation=evaluation_section(tasks, guards=["g"]), candidates=TARGETS)
    write_measured_run(run)
    for task, rate in zip(tasks, finalists, strict=True):
        for name, own in {"base": 0.1, "last_observed": 0.3, NEAR: rate}.items():
            write_evaluation(run, name, "confirm", answers(own, seed=len(task)), task)
    for name in (NEAR, "last_observed"):
        write_evaluation(run, name, "guard", answers(0.5), "g")
    decision = decide(run)
    adjusted = adjusted_p(decision)
    for test in (*decision.tests, *decision.base_tests):
        assert (adjusted[condition_name(test)] < 0.05) == test.held
        assert adjusted[condition_name(test)] >= min(test.p_above, 1.0)
    assert len(build_report(run).verdict.plots[0].rows) == len(adjusted) == 4 + 3


def test_without_an_evaluation_nothing_is_decided(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    names = tensor_names(1)
    write_fitted_run(run, names, [5, 10], frozen=names, forecast=(), candidates={"target_steps": [20]})
    data = build_report(run)
    assert data.verdict.headline == "Nothing is decided yet: step 10 is what you have"
    assert "no evaluation section" in data.verdict.summary[0]
    assert titles(data) == ["No weight moved", "Few checkpoints"]
    assert data.plots == ()


def test_a_run_that_is_only_collected(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    write_window(run, write_spec(run, 10), tensor_names(1), [5, 10])
    data = build_report(run)
    assert data.plots == () and data.verdict.label == "Not decided"
    assert report(run).size > 500_000


def test_nothing_collected_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(WindowNotReady, match="no run directory"):
        report(str(tmp_path))


def test_a_broken_file_is_named(run: str) -> None:
    write(run, "decision.json", "{}")
    with pytest.raises(DataError, match=r"decision\.json"):
        build_report(run)


def test_what_is_out_of_date_is_left_out_and_named(run: str) -> None:
    decide(write_measured_run(run))
    write_evaluation(run, NEAR, "confirm", answers(0.2, seed=1))  # after the decision
    data = build_report(run)
    assert data.verdict.label == "Not decided"
    assert "decision.json" in data.notices[0].text
    assert "there is no decision that rests on them" in data.verdict.summary[0]


def test_a_walks_spectrum_is_the_known_one() -> None:
    """For a long window the shares are 8 / π² (2 j − 1)²."""
    shares = walk_spectrum(range(1, 401))
    orders = np.arange(1, 6)
    assert shares[:5] == pytest.approx(8 / (np.pi * (2 * orders - 1)) ** 2, rel=1e-2)
    assert shares.sum() == pytest.approx(1)


def test_every_figure_has_its_numbers_in_a_table(run: str) -> None:
    decide(write_measured_run(run))
    data = build_report(run)
    kinds = {plot.kind for plot in data.plots}
    assert kinds == {
        *("gain", "accuracy", "candidates", "coefficients", "heat_map", "spectrum"),
        *("skill", "predictors", "drift", "direction"),
    }
    for plot in data.plots:
        draw(plot, width=400, config={}, validate=True)  # the page itself does not spend the time
        assert plot.rows and plot.table.rows and plot.caption
        assert all(len(row) == len(plot.table.headings) for row in plot.table.rows), plot.id
    cells = next(plot for plot in data.plots if plot.id == "explained-variance").rows
    assert {"layer": "outside", "module": "norm", "value": None, "tensors": 1, "moved": 0} in cells


def test_the_same_bytes_in_every_process(run: str, tmp_path: Path) -> None:
    decide(write_measured_run(run))
    figures, pages = tmp_path / "figures", []
    for seed, options in (("1", ["--figures", str(figures)]), ("2", [])):
        command = [sys.executable, "-m", "relex_core", "report", run, "--json", *options]
        # The first process bundles the drawing library, the second finds it.
        environment = {**os.environ, "PYTHONHASHSEED": seed, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        pages.append(Path(json.loads(printed)["page"]).read_bytes())
    assert pages[0] == pages[1]
    assert len(list((tmp_path / "cache/relex").iterdir())) == 1
    data = build_report(run)
    _valid_figures(figures, {plot.id for plot in data.plots})
    for plot in data.plots[:3]:
        assert (figures / f"{plot.id}.svg").read_bytes() == figure(plot)[0]


def test_the_kept_drawing_library_is_used_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = library.__wrapped__()
    [kept] = (tmp_path / "relex").iterdir()
    whole, other = kept.read_bytes(), b"window.vegaEmbed = null;"
    kept.write_bytes(b"// sha256:" + hashlib.sha256(other).hexdigest().encode() + b"\n" + other)
    assert library.__wrapped__() == other.decode()
    for damaged in (whole[:-1], whole.replace(b"vegaEmbed", b"vegaembed", 1)):
        kept.write_bytes(damaged)
        assert library.__wrapped__() == script
        assert kept.read_bytes() == whole


def test_no_cache_folder_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert "vegaEmbed" in library.__wrapped__()
    assert (tmp_path / "file").is_file()


def _valid_figures(folder: Path, ids: set[str]) -> None:
    assert {path.name for path in folder.iterdir()} == {f"{id}.{kind}" for id in ids for kind in ("svg", "png")}
    for path in folder.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 3, path.name
    for path in folder.glob("*.png"):
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width > 1000 and height > 150, path.name


def test_a_run_on_gcs(fake_gcs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    run = f"gs://{new_bucket(fake_gcs)}/rl/relex"
    write_fitted_run(run, tensor_names(1), STEPS, forecast=(), evaluation=evaluation_section())
    decide(write_measured_run(run))
    written = report(run, figures=f"{run}/figures")
    assert written.page == f"{run}/report.html"
    assert exists(open_store(run), "report.html") and exists(open_store(run), "figures/gain.png")


def test_run_without_the_extra_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relex_core.run, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="relex"):
        assert relex_core.run._report("run") is None
    assert 'relex with its extra "report"' in caplog.text
