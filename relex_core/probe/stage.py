"""The probe itself: find the window, choose ranges, read them, forecast, and forecast again without each group."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.checkpoints.reader import open_base, open_window_readers
from relex_core.collect import find_window
from relex_core.errors import SpecError, WindowNotReady
from relex_core.forecast import forecast_from_grams
from relex_core.forecast.figures import figures
from relex_core.inspect import inspect_trajectory
from relex_core.manifest import WindowManifest
from relex_core.probe.figures import Figure, Probe
from relex_core.probe.jackknife import estimate, replicates, standard_error
from relex_core.probe.ranges import Sample, choose_samples
from relex_core.probe.reading import THREADS, SampledGrams, read_grams
from relex_core.spec import LayoutSpec, resolve_spec


def probe_trajectory(
    trajectory: str, base: str, fraction: float, seed: int, layout: LayoutSpec | None, range_bytes: int
) -> Probe:
    """See `relex_core.probe.probe`."""
    if not 0 < fraction <= 1:
        raise SpecError(f"fraction={fraction:g} is no share of the weights", expected="more than 0, at most 1")
    manifest = _window(trajectory, base, layout)
    samples, found = _read(manifest, fraction, seed, range_bytes)
    whole = _named(estimate(found.grams, samples), samples)
    with threadpool_limits(1):  # small products: threads of BLAS would only wait for each other
        forecast = forecast_from_grams(whole, manifest.steps)
        values = figures(whole, manifest.steps)
        parts = [figures(_named(grams, samples), manifest.steps) for grams in replicates(found.grams, samples)]
    return Probe(
        trajectory=trajectory,
        base=base,
        steps=manifest.steps,
        fraction=fraction,
        share=sum(sample.weights for sample in samples) / max(sum(sample.numel for sample in samples), 1),
        ranges=sum(len(sample.ranges) for sample in samples),
        bytes_read=found.bytes_read,
        seed=seed,
        figures=tuple(
            Figure(name=name, value=value, sampling_error=standard_error(value, [part[name] for part in parts]))
            for name, value in values.items()
        ),
        forecast=forecast,
    )


def _window(trajectory: str, base: str, layout: LayoutSpec | None) -> WindowManifest:
    """All complete steps after the base; a window that nobody wrote a spec for yet."""
    last = inspect_trajectory(trajectory, layout).last_complete
    if last is None:
        raise WindowNotReady("no step is complete yet", where=trajectory, next_step="relex inspect shows why")
    spec: dict[str, object] = {"base": base, "trajectory": trajectory}
    spec["window"] = {"t_cut": last, "skip_incomplete": True, "settle_seconds": 0}  # nothing is frozen
    if layout is not None:
        spec["layout"] = layout.model_dump()
    return find_window(resolve_spec(spec, where="--probe", folder=Path.cwd()))


def _read(manifest: WindowManifest, fraction: float, seed: int, range_bytes: int) -> tuple[list[Sample], SampledGrams]:
    if manifest.adapters:
        raise SpecError(
            "the probe samples full weights; these steps are LoRA adapters",
            where=manifest.checkpoints[0].uri,
            next_step="collect and fit: adapters are small, and the forecast is then exact",
        )
    base = open_base(manifest)
    with ThreadPoolExecutor(THREADS) as pool:
        steps = open_window_readers(manifest.checkpoints, pool)
    samples = choose_samples(steps[0].tensors.values(), fraction, seed, range_bytes)
    return samples, read_grams(base, steps, samples)


def _named(grams: np.ndarray, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    return {sample.tensor: gram for sample, gram in zip(samples, grams, strict=True)}
