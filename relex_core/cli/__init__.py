"""The command line. Thin: parse, call one public function, print. Heavy imports come after parsing.

    group      the command `relex`, and how errors become exit statuses
    options    arguments and options that several commands share
    entry      demo, inspect, run, watch
    stages     one command for each stage

Exit status: 0 done, 2 bad usage or spec, 3 the window is not complete yet, 4 the input data are wrong,
5 the storage failed after retries.
"""

from relex_core.cli import entry, stages
from relex_core.cli.group import main

__all__ = ["entry", "main", "stages"]
