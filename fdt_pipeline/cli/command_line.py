"""What command lines have in common: parsers with an example, exit codes, one message on stderr, --debug."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

BAD_INPUT: dict[type[Exception], int] = {ValueError: 2, OSError: 2, ImportError: 2}


def verb_parser(verbs: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a verb, added to argparse's subparsers; description and example are printed as they are."""
    return verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def location(text: str) -> str:
    """A path in its plain form (no "./", no slash at the end); a URL as it is, without a slash at the end."""
    return text.rstrip("/") if "://" in text else str(Path(text))


def add_debug(verbs: Any) -> None:
    """Add the option --debug to each verb of `ArgumentParser.add_subparsers`."""
    for verb in verbs.choices.values():
        verb.add_argument("--debug", action="store_true", help="show an error with its traceback")


def run_verb(
    run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, codes: Mapping[type[Exception], int]
) -> int:
    """Return what `run(arguments)` returns, or the exit code of its error; 130 for Ctrl-C.

    codes: the exit codes of errors that BAD_INPUT lacks or has otherwise; an error that neither names is raised. Where
    the verb has set `arguments.interrupted`, Ctrl-C prints it.
    """
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, such as head, has enough
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


def escape_unknown_characters(stream: TextIO) -> None:
    """Let the stream escape what it cannot encode: a class name need not be ASCII, and a terminal may be."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, in place of `warnings.showwarning`."""
    print(f"warning: {message}", file=sys.stderr)
