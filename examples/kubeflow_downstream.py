"""A pipeline of one's own around relex: decide on a window, then register the checkpoint and tell the trainer.

python -m relex_kfp compile ...                                        # writes relex-pipeline.yaml
python examples/kubeflow_downstream.py relex-pipeline.yaml downstream.yaml
"""

import sys

from kfp import compiler, dsl, kubernetes
from kfp.components import load_component_from_file
from kfp.dsl.base_component import BaseComponent

from relex_kfp.components import BASE_IMAGE
from relex_kfp.components.notify.component import notify


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def register(name: str, checkpoint_uri: str, registry: str) -> str:
    """Stands for a model registry: one small object that says where a model's current checkpoint lies."""
    import json

    from relex_core.storage import open_store, write_bytes

    write_bytes(open_store(registry), f"{name}.json", json.dumps({"checkpoint": checkpoint_uri}).encode())
    return f"{registry}/{name}.json"


@dsl.pipeline(name="after-the-decision")
def act(decision: str, checkpoint_uri: str, run_root: str, name: str, registry: str, webhook: str) -> None:
    """A pipeline of its own, because kfp.local evaluates conditions on inputs of a pipeline only."""
    with dsl.If(decision == "promote"):
        register(name=name, checkpoint_uri=checkpoint_uri, registry=registry)
    with dsl.If(webhook != ""):
        told = notify(run=run_root, decision=decision, url=webhook)
        kubernetes.use_secret_as_env(told, "relex-webhook", {"secret": "RELEX_WEBHOOK_SECRET"})


def build(relex_yaml: str) -> BaseComponent:
    """The pipeline around a compiled relex pipeline."""
    relex = load_component_from_file(relex_yaml)

    @dsl.pipeline(name="shorten-and-register")
    def pipeline(spec: str, run_root: str, name: str, registry: str, webhook: str = "") -> None:
        decided = relex(spec=spec, run_root=run_root)
        act(
            decision=decided.outputs["decision"],
            checkpoint_uri=decided.outputs["checkpoint_uri"],
            run_root=run_root,
            name=name,
            registry=registry,
            webhook=webhook,
        )

    return pipeline


if __name__ == "__main__":
    compiler.Compiler().compile(build(sys.argv[1]), sys.argv[2])
