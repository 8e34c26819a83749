"""The forecast of real runs, through collect and fit: RUN/forecast.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import random_base, random_walk, write_run
from support import SMALL

from relex_core.collect import collect
from relex_core.errors import DataError, WindowNotReady
from relex_core.fit import fit
from relex_core.forecast import Forecast, forecast
from relex_core.forecast.files import load_forecast
from relex_core.spec import resolve_spec


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("small")
    spec = {
        "base": str(SMALL / "run" / "base"),
        "trajectory": str(SMALL / "run"),
        "window": {"t_cut": 16},
        "candidates": {"target_steps": [20, 40, 80]},
    }
    collect(resolve_spec(spec, where="test", folder=run, out=str(run)))
    fit(str(run))
    return run


def test_a_real_run(small: Path) -> None:
    result = forecast(str(small))
    assert result.target_steps == (20, 40, 80) and result.steps == tuple(range(1, 17))
    null = result.model.null
    # A real GRPO run of 16 steps: R² near 1, and the line is far from helping.
    assert null.r_squared == pytest.approx(0.977, abs=0.002)
    assert null.displacement_exponent == pytest.approx(1.33, abs=0.02)
    assert null.drift_share == pytest.approx(0.272, abs=0.01)
    # 16 steps leave open whether that is drift
    assert null.drift_share_interval[0] < 0.05 and 0.4 < null.drift_share_interval[1] < 0.65
    assert result.advice.worthwhile == "unclear" and result.advice.window == "larger"
    skills = {name: found.skill for name, found in result.model.predictors.items()}
    assert skills["relex-scale1.00"] < -0.3 < 0.05 < skills["drift"]
    assert result.model.overshoot[-1] > 2
    assert sum(tensor.moved for tensor in result.tensors.values()) == 15
    assert "not about answers" in result.advice.caveat


def test_explained_variance_is_that_of_the_fit(small: Path) -> None:
    result, fitted = forecast(str(small)), json.loads((small / "fit" / "fit.json").read_text())
    for name, tensor in result.tensors.items():
        theirs = fitted["tensors"][name]
        assert tensor.moved == theirs["moved"]
        if tensor.moved:
            assert tensor.explained_variance[0] == pytest.approx(theirs["explained_variance"], rel=1e-5)
            assert tensor.r_squared == pytest.approx(theirs["r_squared"], rel=1e-4)


def test_it_is_stored_small_and_read_back(small: Path) -> None:
    result = forecast(str(small))
    path = small / "forecast.json"
    before = path.stat().st_mtime_ns
    assert forecast(str(small)) == result == load_forecast(str(small))
    assert path.stat().st_mtime_ns == before and path.stat().st_size < 150_000
    path.write_text(path.read_text()[:100])
    assert forecast(str(small)) == result
    assert Forecast.model_validate_json(path.read_text()) == result


def test_it_is_made_again_when_the_fit_changes(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, [5, 10, 15, 20]))
    with pytest.raises(WindowNotReady, match="nothing is fitted yet"):
        forecast(run)
    with pytest.raises(WindowNotReady, match="nothing is forecast yet"):
        load_forecast(run)
    fit(run)
    first = forecast(run)
    other = write_run(tmp_path, base, {}, window={"t_cut": 15}, out="other")
    fit(other)
    Path(other, "forecast.json").write_bytes(Path(run, "forecast.json").read_bytes())
    assert forecast(other).steps == (5, 10, 15) != first.steps
    Path(other, "fit", "gram.safetensors").write_bytes(Path(run, "fit", "gram.safetensors").read_bytes())
    Path(other, "forecast.json").unlink()
    with pytest.raises(DataError, match="belong to another fit"):
        forecast(other)
