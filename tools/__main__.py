"""The command line: `python -m tools VERB ...`. Results go to stdout, progress, warnings and errors to stderr.

Exit codes: 0 fine, 1 a check failed, 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

try:
    from fdt_pipeline.command_line import add_debug, run_verb
    from fdt_pipeline.shards import BadSampleError, WorkerError

    from . import convert, index, info, preview, shard, verify
    from .bench import command as bench
except KeyboardInterrupt:  # they take seconds, and a traceback says nothing of use
    sys.exit(130)

VERBS = (shard, index, verify, info, preview, convert, bench)
_EXAMPLE = """example:
  python -m tools shard train/data/fashion_mnist_subset runs/shards
  python -m tools verify runs/shards
  python -m tools info runs/shards"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code; SystemExit(2) for a wrong usage."""
    _escape_what_cannot_be_encoded(sys.stdout)
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return run_verb(arguments.run, arguments, {BadSampleError: 1, WorkerError: 2})


def _escape_what_cannot_be_encoded(stream: TextIO) -> None:
    """A class name need not be ASCII, and a terminal in the C locale may be."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        description="Turn data sets into checked shards.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    add_debug(verbs)
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
