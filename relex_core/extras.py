"""What the extras of pyproject.toml bring beyond a bare install, and how to get them."""

from __future__ import annotations

_MODULES = {
    "fit": ("numpy", "ml_dtypes", "threadpoolctl"),
    "cuda": ("torch",),
    "eval": ("latex2sympy2_extended", "math_verify", "safetensors", "scipy", "sympy", "tokenizers", "transformers"),
    "vllm": ("vllm",),
    "lmeval": ("lm_eval",),
    "tasks": ("datasets", "reasoning_gym"),
    "kfp": ("kfp",),
    "report": ("altair", "jinja2", "markupsafe", "vl_convert"),
}
EXTRA_OF = {module: extra for extra, modules in _MODULES.items() for module in modules}
"""By module that relex imports when it is needed: the extra that brings it."""

EXTRA_OF_COMMAND = {
    **dict.fromkeys(("demo", "run", "watch", "evaluate"), "eval"),
    **dict.fromkeys(("decide", "report", "publish"), "report"),
}
"""What these commands need as a whole, whichever module they miss first."""


def install(*extras: str) -> str:
    """The next step of someone who lacks these extras. relex is not on PyPI, where its name is another project's."""
    noun = "extra" if len(extras) == 1 else "extras"
    named = " and ".join(f'"{extra}"' for extra in extras)
    return f'install relex with its {noun} {named}: pip install ".[{",".join(extras)}]" in a checkout'
