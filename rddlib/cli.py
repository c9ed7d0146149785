"""Command line: ``python -m rddlib COMMAND``. The commands stand in `commands`, imported when one is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__

COMMANDS = {
    "run": "run one experiment, or find its record",
    "show": "print one record",
    "list_": "the records, one a line",
    "grid": "run what is missing of a grid of experiments",
    "status": "what is done and missing of each grid",
    "merge": "take in records and sets of another store",
    "prior": "train, score and keep a generator for GLaD",
    "data": "what a data set holds, and what can be distilled from it",
    "evaluate": "judge a set that was distilled elsewhere, beside random images",
    "export": "a distilled set as PNGs, as one picture, or as tensors",
}
words: list[str] = []  # of the command line that is being read: help shows the defaults of what they choose


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: a run of a grid failed. 2: refused, or kept out of a merge. 3: a grid's time is
    spent and work is left. 130: interrupted. 141: nobody reads what is printed.
    """
    words[:] = sys.argv[1:] if arguments is None else arguments
    try:
        app = application()
    except ModuleNotFoundError as error:  # on a GPU machine, say, that has what runs need and no more
        print(f"rddlib: the command line needs the package {error.name}; the library does not", file=sys.stderr)
        return 2
    try:
        return app(words) or 0
    except BrokenPipeError:  # the reader, `head` say, has seen enough; Python would complain at its end once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\nrddlib: interrupted. What is done is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, refusals()):
            raise
        print(f"rddlib: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def application() -> Any:
    """The application, a cyclopts.App. Its commands are imported when they are called."""
    from cyclopts import App, Parameter

    app = App(
        name="python -m rddlib",
        help="Group distributionally robust dataset distillation.",
        version=__version__,
        help_format="plaintext",
        default_parameter=Parameter(negative=(), allow_repeating=True),  # the last one counts
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        print_error=False,
        exit_on_error=False,
    )
    for function, meaning in COMMANDS.items():
        app.command(f"rddlib.commands:{function}", name=function.rstrip("_"), help=meaning)
    return app


def refusals() -> tuple[type[Exception], ...]:
    """Errors that are told in a sentence. Asked for when there is one: imports take a second."""
    from cyclopts import CycloptsError

    from .base import DataError, DivergenceError, SettingError
    from .experiments.records import StoreError

    return CycloptsError, SettingError, DataError, StoreError, DivergenceError
