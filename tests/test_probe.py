"""`relex inspect --probe`: a sample of the weights beside all of them, on real files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import SMALL

from relex_core.checkpoints.contents import TensorInfo
from relex_core.cli import main
from relex_core.errors import SpecError, WindowNotReady
from relex_core.forecast import forecast_from_grams
from relex_core.probe import Probe, probe
from relex_core.probe.jackknife import estimate, replicates, standard_error
from relex_core.probe.ranges import GROUPS, Range, Sample, choose_samples

KIB = 1024
STEPS = 10


def trajectory(root: Path, dtype: torch.dtype) -> tuple[str, str]:
    """A walk with drift of two matrices and a vector; the size of the moves differs from row to row."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (512, 96),
        "lm_head.weight": (700, 64),
        "model.norm.weight": (64,),
    }
    masters = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sizes = {name: 0.02 * torch.rand(s[0], *(1,) * (len(s) - 1), generator=generator) for name, s in shapes.items()}
    drift = {name: 0.4 * sizes[name] * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for step in range(STEPS + 1):
        folder = root / "run" / f"global_step_{step}" if step else root / "base"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "test"}))
        save_file({name: m.to(dtype) for name, m in masters.items()}, folder / "model.safetensors")
        for name in masters:
            masters[name] = masters[name] + drift[name]
            masters[name] += sizes[name] * torch.randn(masters[name].shape, generator=generator)
    return str(root / "run"), str(root / "base")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return trajectory(tmp_path_factory.mktemp("probe"), torch.float32)


def values(found: Probe) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in found.figures}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_all_of_the_weights_give_the_forecast_itself_without_error(tmp_path: Path, dtype: torch.dtype) -> None:
    where = trajectory(tmp_path, dtype)
    found = probe(*where, fraction=1.0)
    read = [load(Path(where[1]))] + [load(Path(where[0], f"global_step_{t}")) for t in range(1, STEPS + 1)]
    deltas = {n: torch.stack([s[n].double() - w.double() for s in read[1:]]).flatten(1) for n, w in read[0].items()}
    expected = forecast_from_grams({n: (rows @ rows.T).numpy() for n, rows in deltas.items()}, range(1, STEPS + 1))
    null = expected.model.null
    figures = {"drift share φ": null.drift_share, "displacement exponent": null.displacement_exponent}
    figures |= {"explained variance": null.explained_variance, "R² of the line": null.r_squared}
    figures |= {f"skill of {n}": each.skill for n, each in expected.model.predictors.items() if n != "hold"}
    for pooled in expected.model.by_windows:
        figures["best scale, {:g} to {:g} windows ahead".format(*pooled.windows)] = pooled.best_scale
    figures["skill of auto"] = expected.auto.skill
    defined = {name: value for name, value in values(found).items() if value is not None}
    assert defined == pytest.approx({n: value for n, value in figures.items() if value is not None}, rel=1e-3, abs=1e-3)
    assert values(found).keys() == figures.keys() - {"skill of trailing_average_20", "skill of trailing_average_40"}
    assert found.share == 1.0 and all(figure.sampling_error in (0, None) for figure in found.figures)
    assert found.forecast.advice.worthwhile == expected.advice.worthwhile


def load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_sample_is_close_and_its_error_says_how_close(where: tuple[str, str]) -> None:
    whole = values(probe(*where, fraction=1.0))
    samples = [probe(*where, fraction=0.05, seed=seed, range_bytes=KIB) for seed in range(8)]
    for name in ("drift share φ", "skill of relex-scale1.00", "skill of drift", "explained variance"):
        figures = [next(figure for figure in found.figures if figure.name == name) for found in samples]
        off = np.array([figure.value - whole[name] for figure in figures])
        stated = np.sqrt(np.mean([figure.sampling_error**2 for figure in figures]))
        assert np.abs(off).max() < 0.2
        assert 0.4 < np.sqrt(np.mean(off**2)) / stated < 2.5, name
    assert 0.05 < samples[0].share < 0.1 and samples[0].ranges == 17  # 8 of each matrix, and the norm whole


def test_the_seed_chooses_the_ranges(where: tuple[str, str]) -> None:
    first, again, other = (probe(*where, fraction=0.05, seed=seed, range_bytes=KIB) for seed in (1, 1, 2))
    assert first == again
    assert values(first) != values(other)


def test_only_the_sample_is_read(where: tuple[str, str]) -> None:
    found = probe(*where, fraction=0.05, range_bytes=KIB)
    weights = 512 * 96 + 700 * 64 + 64
    assert found.bytes_read == pytest.approx(found.share * weights * 4 * (STEPS + 1))


@given(
    numel=st.integers(1, 10**6),
    fraction=st.floats(1e-4, 1.0),
    seed=st.integers(0, 50),
    range_bytes=st.sampled_from([64, KIB, 64 * KIB]),
)
def test_ranges_lie_apart_inside_the_tensor(numel: int, fraction: float, seed: int, range_bytes: int) -> None:
    [sample] = choose_samples([TensorInfo("w", "BF16", (numel,))], fraction, seed, range_bytes)
    parts = sample.ranges
    assert parts[0].start >= 0 and parts[-1].stop <= numel
    assert all(a.stop <= b.start for a, b in pairwise(parts))
    assert len({part.group for part in parts}) == len(parts) <= GROUPS
    if len(parts) > 1:
        assert all(part.stop - part.start >= range_bytes // 2 for part in parts)
        assert min(fraction, 0.5) * 0.9 <= sample.share <= max(1.1 * fraction, 2 * range_bytes / numel, 0.5)
    else:
        assert sample.share == 1.0


def test_integers_and_empty_tensors_are_left_out() -> None:
    tensors = [TensorInfo("a", "I64", (5,)), TensorInfo("b", "BF16", (0, 4)), TensorInfo("c", "BF16", (4,))]
    assert [sample.tensor for sample in choose_samples(tensors, 0.01, 0, KIB)] == ["c"]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_jackknife_of_a_sum_is_its_textbook_variance(count: int) -> None:
    random = np.random.default_rng(count)
    ranges = tuple(Range("w", 100 * r, 100 * r + 10, int(g)) for r, g in enumerate(random.permutation(GROUPS)[:count]))
    sample = Sample("w", 100 * count, ranges)
    sums = np.zeros((1, GROUPS, 1, 1))
    sums[0, [part.group for part in ranges], 0, 0] = random.standard_normal(count)
    total = float(estimate(sums, [sample])[0, 0, 0])
    parts = [float(grams[0, 0, 0]) for grams in replicates(sums, [sample])]
    drawn = sums[0, [part.group for part in ranges], 0, 0]
    assert total == pytest.approx(10 * drawn.sum())
    expected = 10**2 * count * drawn.var(ddof=1) * (1 - 0.1)  # N²/n² · n s² (1 − f)
    assert standard_error(total, parts) == pytest.approx(expected**0.5)


def test_the_command_line(where: tuple[str, str]) -> None:
    result = CliRunner().invoke(main, ["-q", "inspect", where[0], "--probe", "--base", where[1], "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "sampling" in result.output and "skill of drift" in result.output and "worthwhile" in result.output
    asked = CliRunner().invoke(main, ["-q", "inspect", where[0], "--probe", "--base", where[1], "--json"])
    assert Probe.model_validate_json(asked.output).steps == tuple(range(1, STEPS + 1))
    without = CliRunner().invoke(main, ["inspect", where[0], "--probe"])
    assert without.exit_code == 2 and "--probe needs --base" in without.output


def test_a_real_run_and_its_probe_agree() -> None:
    found = probe(str(SMALL / "run"), str(SMALL / "run" / "base"))
    assert values(found)["drift share φ"] == pytest.approx(0.272, abs=0.01)  # of the fit; test_forecast_stage.py
    assert found.share == 1.0  # 25,280 weights: every tensor is smaller than one range


def test_a_model_that_is_read_whole_says_so_in_plain_digits() -> None:
    found = CliRunner().invoke(
        main, ["-q", "inspect", str(SMALL / "run"), "--probe", "--base", str(SMALL / "run/base")]
    )
    assert found.exit_code == 0 and "A sample of 100 % of the weights" in found.output


def test_wrong_input_is_refused(where: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="fraction"):
        probe(*where, fraction=0.0)
    (tmp_path / "global_step_1").mkdir()
    with pytest.raises(WindowNotReady):
        probe(str(tmp_path), where[1])
