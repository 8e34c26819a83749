"""The page for people."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def report(run: str, key: str, decision: str, advice: str, page: dsl.Output[dsl.HTML]) -> str:
    """Write RUN/report.html, and show it in Kubeflow.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        decision: of decide; part of the cache key, otherwise unused.
        advice: of forecast; here only so that Kubeflow waits for it.
        page: a copy of the page.

    Returns:
        URI of the page.
    """
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.layout import REPORT
    from relex_core.report import report as write_report
    from relex_core.storage import open_store, read_bytes

    with exit_on_error():
        written = write_report(run)
        Path(page.path).write_bytes(read_bytes(open_store(run), REPORT))
    return written.page
