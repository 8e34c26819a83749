"""Fit one shard of the tensors."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def fit(run: str, key: str, shard: str = "1/1") -> str:
    """Fit the direction of every tensor of one shard, in one read of its part of the window.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        shard: "2/3": the second of three parts of about equal weights. Different shards run at the same time.

    Returns:
        The shard.
    """
    from relex_core.errors import exit_on_error
    from relex_core.fit import fit_shard

    number, _, shards = shard.partition("/")
    with exit_on_error():
        fit_shard(run, int(number), int(shards))
    return shard
