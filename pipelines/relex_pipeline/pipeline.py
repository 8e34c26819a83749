"""The relex pipeline: an observation window in, a decision out.

1. gate: is the window complete, and not decided on yet? If not, the run ends here, green, and nothing was done.
2. collect: freeze the window.
3. fit: one direction per weight tensor, in `shards` pods at the same time; merge_fit makes one fit of them.
4. forecast: what extrapolation can be expected to do, from the Gram matrices.
5. For each candidate: extrapolate (write the checkpoint), then evaluate it as far as the search asks all of them. The
   base and the last observed checkpoint are evaluated meanwhile.
6. evaluate: the rest of the search, then the finalist on the confirmation split.
7. decide: promote the finalist, or keep what was observed.
8. report: the page for people.
9. publish: delete the losers, and say in RUN/published.json which checkpoint to use.

Weights never pass through Kubeflow. Each step finds its input in the run directory and leaves its output there, so a
pipeline that failed or was killed goes on where it stopped when it is run again.
"""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from relex_core.stages import BY_NAME, Stage
from relex_kfp.components.collect.component import collect
from relex_kfp.components.decide.component import decide
from relex_kfp.components.evaluate.component import evaluate
from relex_kfp.components.extrapolate.component import extrapolate
from relex_kfp.components.fit.component import fit
from relex_kfp.components.forecast.component import forecast
from relex_kfp.components.gate.component import gate
from relex_kfp.components.merge_fit.component import merge_fit
from relex_kfp.components.outcome.component import outcome
from relex_kfp.components.publish.component import publish
from relex_kfp.components.report.component import report

NAME = "relex"
NEVER_CACHED = frozenset({"gate", "collect", "publish"})
"""They look at what grows, or delete; everything else has the key of collect among its inputs."""

Placed = Callable[[dsl.PipelineTask, Stage], dsl.PipelineTask]
"""Says where a stage's pod runs and with what: see profiles.py."""


class Outputs(NamedTuple):
    """What downstream steps get."""

    decision: str
    """ "promote", "keep_observed" or "not_ready"."""
    checkpoint_uri: str
    """Folder of the checkpoint to use; empty while nothing is decided."""
    training_steps_saved: int


def build_pipeline(place: Placed, *, parallelism: int = 8) -> BaseComponent:
    """The pipeline for one kind of cluster.

    Args:
        place: a profile.
        parallelism: how many candidates are written and evaluated at the same time, at most.
    """
    work = _work_pipeline(place, parallelism)

    @dsl.pipeline(name=NAME, description="Extrapolate RLVR checkpoints; promote one only when it is shown to help.")
    def relex(
        spec: str,
        base: str = "",
        trajectory: str = "",
        t_cut: int = 0,
        run_root: str = "",
        shards: int = 1,
    ) -> Outputs:
        """Decide on one RL run.

        Args:
            spec: the run's spec as JSON, or as much of it as the other parameters leave open.
            base: folder of the model that the RL run started from.
            trajectory: folder of the step folders.
            t_cut: last optimizer step of the observation window.
            run_root: where relex writes. Empty: TRAJECTORY/relex.
            shards: pods that fit at the same time.
        """
        looked = gate(spec=spec, base=base, trajectory=trajectory, run_root=run_root, t_cut=t_cut)
        _on(place, looked, "gate")
        with dsl.If(looked.outputs["ready"] == True, name="ready"):  # noqa: E712, a condition of the pipeline
            window = _on(place, collect(spec=looked.outputs["spec"], shards=shards), "collect")
            done = work(**{name: window.outputs[name] for name in ("run", "key", "shards", "candidates", "references")})
        with dsl.Else(name="nothing-to-do"):
            idle = _on(place, outcome(run=looked.outputs["run"], state=looked.outputs["state"]), "gate")
        return Outputs(*(dsl.OneOf(done.outputs[field], idle.outputs[field]) for field in Outputs._fields))

    return relex


def _work_pipeline(place: Placed, parallelism: int) -> BaseComponent:
    """Steps 3 to 9. A pipeline of its own, because kfp.local loops over inputs of a pipeline only."""

    @dsl.pipeline(name=f"{NAME}-work", description="From a collected window to a published outcome.")
    def work(run: str, key: str, shards: list, candidates: list, references: list) -> Outputs:
        of_run = {"run": run, "key": key}
        with dsl.ParallelFor(shards, name="each-shard") as shard:
            fitted = _on(place, fit(shard=shard, **of_run), "fit")
        merged = _on(place, merge_fit(shards=dsl.Collected(fitted.output), **of_run), "merge_fit")
        of_fit = {**of_run, "fit_key": merged.outputs["Output"]}
        expected = _on(place, forecast(**of_fit), "forecast")

        with dsl.ParallelFor(references, name="each-reference") as reference:
            referred = _on(place, evaluate(candidate=reference, **of_run), "measure")
        with dsl.ParallelFor(candidates, name="each-candidate", parallelism=parallelism) as candidate:
            written = _on(place, extrapolate(candidate=candidate, **of_fit), "extrapolate")
            measured = _on(place, evaluate(candidate=written.outputs["Output"], **of_run), "measure")

        answered = {
            "measured": dsl.Collected(measured.outputs["Output"]),
            "references": dsl.Collected(referred.outputs["Output"]),
        }
        evaluated = _on(place, evaluate(**answered, **of_run), "evaluate")
        decided = _on(place, decide(evaluated=evaluated.outputs["Output"], **of_run), "decide")
        of_decision = {**of_run, "decision": decided.outputs["Output"]}
        reported = _on(place, report(advice=expected.outputs["Output"], **of_decision), "report")
        done = _on(place, publish(page=reported.outputs["Output"], **of_decision), "publish")
        return Outputs(*(done.outputs[field] for field in Outputs._fields))

    return work


def _on(place: Placed, task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """The task as the pod of a stage of the table."""
    return place(task.set_caching_options(name not in NEVER_CACHED), BY_NAME[name])
