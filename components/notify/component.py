"""Tell a trainer or a registry about the outcome. Optional: the pipeline itself does not use it."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def notify(run: str, decision: str, url: str) -> str:
    """POST RUN/published.json to a URL, signed with the secret in the environment variable RELEX_WEBHOOK_SECRET.

    Args:
        run: URI of the run directory.
        decision: output of the pipeline; nothing is sent while it is "not_ready": what lies there is an older
            outcome.
        url: of the receiver.

    Returns:
        The delivery's id: the same outcome is the same delivery, however often it is sent. Empty if nothing was sent.
    """
    import os

    from relex_core.errors import exit_on_error
    from relex_core.notify import notify as send

    if decision == "not_ready":
        print("nothing is decided, so nothing is sent")
        return ""
    with exit_on_error():
        return send(run, url, os.environ.get("RELEX_WEBHOOK_SECRET", "").encode())
