"""How every command line of this project ends: an exit code, one message on stderr, and with --debug the traceback."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

BAD_INPUT: dict[type[Exception], int] = {ValueError: 2, OSError: 2, ImportError: 2}


def add_debug(verbs: Any) -> None:
    """The option --debug, to each verb of `ArgumentParser.add_subparsers`."""
    for verb in verbs.choices.values():
        verb.add_argument("--debug", action="store_true", help="show an error with its traceback")


def run_verb(
    run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, codes: Mapping[type[Exception], int]
) -> int:
    """What `run(arguments)` returns, or the exit code of its error; 130 for Ctrl-C.

    codes: those of errors that are not BAD_INPUT's, or differ from it; any other error is raised. Where the verb has
    set `arguments.interrupted`, Ctrl-C prints it.
    """
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if hasattr(arguments, "interrupted"):
            print(f"\ninterrupted: {arguments.interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        found = [code for kind, code in {**BAD_INPUT, **codes}.items() if isinstance(error, kind)]
        if not found:
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return found[-1]
