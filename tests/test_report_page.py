"""The page as a reader has it: in a real Chromium, opened as a file, without network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from report_runs import (
    NEAR,
    answers,
    evaluation_section,
    tensor_names,
    write_candidate,
    write_evaluation,
    write_fitted_run,
    write_measured_run,
    write_spec,
    write_window,
)

from relex_core.decide import decide
from relex_core.report import report

playwright = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: playwright is missing (make test has it)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NOT TESTED: the report in a browser; there is no chromium (apt-get install chromium)"
)

WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 360, "height": 780}
STEPS = range(1, 25)
SECTIONS = {"evaluation": evaluation_section(), "candidates": {"target_steps": [100, 300]}}


@dataclass
class Opened:
    """A page in the browser, and everything that went wrong in it."""

    page: playwright.Page
    complaints: list[str] = field(default_factory=list)

    def number(self, script: str) -> float:
        return float(self.page.evaluate(script))

    def marks(self) -> dict[str, int]:
        """Drawn shapes by figure."""
        shapes = "svg .mark-symbol path, svg .mark-rect path"
        script = f"all => Object.fromEntries(all.map(one => [one.id, one.querySelectorAll('{shapes}').length]))"
        return dict(self.page.eval_on_selector_all(".chart", script))

    def overflow(self) -> float:
        """Pixels by which the page is wider than the window."""
        return self.number("document.documentElement.scrollWidth - innerWidth")

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def drawn(self, theme: str) -> None:
        self.page.wait_for_selector(f"html[data-drawn={theme}]", state="attached")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        # Root needs --no-sandbox; the page is our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: playwright.Browser, path: Path, size: dict[str, int] = WIDE, theme: str = "light"
) -> Iterator[Opened]:
    context = browser.new_context(viewport=size, color_scheme=theme)
    shown = Opened(context.new_page())
    shown.page.on("console", lambda message: shown.complaints.append(f"console: {message.text}"))
    shown.page.on("pageerror", lambda error: shown.complaints.append(f"error: {error}"))
    shown.page.on("dialog", lambda dialog: shown.complaints.append(f"dialog: {dialog.message}"))
    shown.page.on(
        "request", lambda request: request.url.startswith("file:") or shown.complaints.append(f"fetches {request.url}")
    )
    shown.page.goto(path.as_uri())
    shown.drawn(theme)
    yield shown
    context.close()
    assert shown.complaints == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole run with a promotion."""
    run = str(tmp_path_factory.mktemp("page") / "run")
    write_fitted_run(run, tensor_names(3), STEPS, frozen=["model.norm.weight"], **SECTIONS)
    decide(write_measured_run(run, **{"rl-step00100": 0.65}))
    report(run)
    return Path(run, "report.html")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_drawn_and_fits(
    browser: playwright.Browser, page: Path, size: dict[str, int], theme: str
) -> None:
    with opened(browser, page, size, theme) as shown:
        marks = shown.marks()
        assert len(marks) == 11
        assert all(count > 0 for count in marks.values()), marks
        assert shown.overflow() <= 0
        for id in (
            "gain",
            "accuracy-over-steps",
            "coefficients",
            "skill",
            "predictors",
        ):  # the reference line at 0 or T_cut
            assert shown.count(f"#{id} svg .mark-rule.layer_0_marks line") == 1, id
        ids = shown.page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
        assert len(ids) == len(set(ids))
        for figure in shown.page.locator(".chart").all():
            drawn, room = (figure.locator(which).first.bounding_box() for which in ("svg", "xpath=."))
            assert drawn["width"] <= room["width"] + 1
        assert shown.count("figure") == shown.count("figure details table") == 11
        background, text = (
            shown.page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (("section", "backgroundColor"), ("h1", "color"))
        )
        assert (_brightness(background) > _brightness(text)) == (theme == "light")
        assert abs(_brightness(background) - _brightness(text)) > 150
        axis = shown.page.evaluate("getComputedStyle(document.querySelector('#skill .role-axis-label text')).fill")
        assert abs(_brightness(background) - _brightness(axis)) > 100


def _brightness(colour: str) -> float:
    return sum(map(float, colour.strip("rgb()").split(",")[:3])) / 3


def test_the_decision_is_on_the_first_screen(browser: playwright.Browser, page: Path) -> None:
    with opened(browser, page) as shown:
        assert shown.page.inner_text("h1").startswith(f"Promote {NEAR}:")
        box = shown.page.locator("#gain").bounding_box()
        assert box is not None and box["y"] + box["height"] <= WIDE["height"]


def test_a_tensor_can_be_chosen_and_looked_at_closely(browser: playwright.Browser, page: Path) -> None:
    words = "#coefficients svg .mark-text.role-mark text"
    with opened(browser, page) as shown:
        chosen = shown.page.locator("#coefficients select")
        assert "model.norm.weight" not in chosen.inner_text()  # it never moved
        chosen.select_option("model.embed_tokens.weight")
        first = shown.page.text_content(words)
        chosen.select_option("lm_head.weight")
        assert shown.page.text_content(words) != first
        assert shown.count("#coefficients svg .mark-symbol path") == len(STEPS)

        shown.page.locator("#coefficients input[type=range]").fill("10")
        assert shown.count("#coefficients svg .mark-symbol path") == 10

        ticks = "#coefficients svg .role-axis-label text"
        before = shown.page.locator(ticks).all_text_contents()
        shown.page.locator("#coefficients svg").hover()
        shown.page.keyboard.down("Control")
        shown.page.mouse.wheel(0, -400)
        shown.page.keyboard.up("Control")
        shown.page.wait_for_timeout(300)
        assert shown.page.locator(ticks).all_text_contents() != before


def test_the_wheel_scrolls_the_page_over_a_chart(browser: playwright.Browser, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.page.locator("#coefficients svg").hover()
        before = shown.number("scrollY")
        shown.page.mouse.wheel(0, 300)
        shown.page.wait_for_timeout(500)
        assert shown.number("scrollY") > before


def test_charts_follow_a_change_of_theme(browser: playwright.Browser, page: Path) -> None:
    fill = "getComputedStyle(document.querySelector('#skill .role-axis-label text')).fill"
    with opened(browser, page) as shown:
        light = _brightness(shown.page.evaluate(fill))
        shown.page.emulate_media(color_scheme="dark")
        shown.drawn("dark")
        assert _brightness(shown.page.evaluate(fill)) > light + 60
        assert all(shown.marks().values())


def test_a_table_behind_a_plot_opens_and_scrolls_in_its_box(browser: playwright.Browser, page: Path) -> None:
    with opened(browser, page, NARROW) as shown:
        for summary in shown.page.locator("summary").all():
            summary.click()
        assert shown.overflow() <= 0
        assert shown.number("document.querySelector('#predictors ~ details .scroll').scrollWidth") > NARROW["width"]


def test_four_hundred_tensors(browser: playwright.Browser, tmp_path: Path) -> None:
    """44 layers, 75 checkpoints; the size of the page, and how long it takes to open (printed, with -s)."""
    run = str(tmp_path / "run")
    names = [name.replace("model.", "model.language_model.") for name in tensor_names(44)]
    write_fitted_run(run, names, range(1, 76), forecast=names[:10], **SECTIONS)
    decide(write_measured_run(run))
    size = report(run).size
    with opened(browser, Path(run, "report.html")) as shown:
        timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        loaded = shown.number(timing)
        assert all(shown.marks().values())
        assert shown.count("#coefficients option") == len(names)
        print(f"{len(names)} tensors: {size / 1e6:.1f} MB, loaded in {loaded / 1000:.2f} s")
    assert size < 8_000_000


def test_with_everything_missing(browser: playwright.Browser, tmp_path: Path) -> None:
    collected, frozen, short = (str(tmp_path / name) for name in ("collected", "frozen", "short"))
    write_window(collected, write_spec(collected, 10), tensor_names(1), [5, 10])
    names = tensor_names(1)
    write_fitted_run(frozen, names, range(1, 10), frozen=names, candidates={"target_steps": [20]})
    write_fitted_run(short, names, [5, 10], frozen=names[1:])  # one tensor moved, two checkpoints, no candidates
    for run, figures in ((collected, 0), (frozen, 0), (short, 6)):
        report(run)
        with opened(browser, Path(run, "report.html"), NARROW, "dark") as shown:
            assert shown.page.inner_text("h1").startswith("Nothing is decided yet: step")
            assert shown.count(".chart") == figures
            careful = shown.page.locator(".careful a")
            assert careful.inner_text().startswith("Before you rely on it: ")
            assert careful.bounding_box()["y"] < NARROW["height"]
            assert all(shown.marks().values())
            assert shown.count("main section h2") >= 6
            assert shown.overflow() <= 0


def test_hostile_names_are_only_text(browser: playwright.Browser, tmp_path: Path) -> None:
    attack = "<script>window.hacked=1<∕script><img src=x onerror=window.hacked=1>"  # a folder's name has no slash
    closing = "</script><script>window.hacked=1</script>"
    run = str(tmp_path / "<b>run&amp;")
    names = [f"model.layers.0.{attack}.weight", f"model.layers.1.{closing}.weight", "x" * 300, "{{ 7 * 7 }}.$'`"]
    write_fitted_run(run, names, STEPS, **SECTIONS)
    write_measured_run(run)
    write_candidate(run, attack, 200, method=closing)
    write_evaluation(run, attack, "select", answers(0.9))
    write_evaluation(run, attack, "confirm", answers(0.6, seed=1))
    assert decide(run).candidate == attack
    report(run)
    for size in (WIDE, NARROW):
        with opened(browser, Path(run, "report.html"), size) as shown:
            assert shown.page.evaluate("window.hacked") is None
            assert shown.count("main img, main b script, main script") == 0
            assert attack in shown.page.inner_text("h1")
            shown.page.locator("#coefficients select").select_option(names[1])
            assert shown.count("#coefficients svg .mark-symbol path") == len(STEPS)
            shown.page.locator("#candidates svg .mark-symbol path").first.hover()  # the tooltip has the name, too
            assert closing.replace("_", " ") in shown.page.inner_text("#vg-tooltip-element")
            assert shown.page.evaluate("window.hacked") is None
            assert shown.overflow() <= 0


def test_no_script_but_its_own_can_run(browser: playwright.Browser, page: Path) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.evaluate(
        "() => { const s = document.createElement('script'); s.text = 'window.hacked = 1'; document.body.append(s); }"
    )
    assert tab.evaluate("() => window.hacked") is None
    context.close()
