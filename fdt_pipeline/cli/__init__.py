"""The command line of the package, `fdt-pipeline VERB ...`: results on stdout; progress, warnings and errors on stderr.

Exit codes: 0 fine, 1 a check failed, 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

_EXAMPLE = """example:
  fdt-pipeline shard train/data/fashion_mnist_subset runs/shards
  fdt-pipeline verify runs/shards
  fdt-pipeline info runs/shards"""
BAD_INPUT: dict[type[Exception], int] = {ValueError: 2, OSError: 2, ImportError: 2}
_MAX_PIXELS = "refuse images of more pixels (default: 89478485, Pillow's limit against bombs)"
_AS_WRITTEN = argparse.RawDescriptionHelpFormatter


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names, and return its exit code; SystemExit(2) for a wrong usage."""
    return run(argv, "fdt-pipeline", "Turn data sets into checked shards, and look after the native operators.")


def run(
    argv: Sequence[str] | None, prog: str, description: str, more_verbs: Sequence[Callable[[Any], None]] = ()
) -> int:
    """Run a program called `prog`, which has `more_verbs` beside the package's, as `main` does."""
    try:
        from fdt_pipeline.cli import index, inspecting, native, preview, shard
        from fdt_pipeline.shards import BadSampleError, WorkerError
        from fdt_pipeline.sources.image_pixels import pixel_limit
    except KeyboardInterrupt:  # the imports may take seconds, and a traceback says nothing of use
        return 130
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=_EXAMPLE, formatter_class=_AS_WRITTEN)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in (shard, index, inspecting, preview, native):
        module.add_parsers(verbs)
    for add_parser in more_verbs:
        add_parser(verbs)
    add_debug(verbs)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a class name need not be ASCII, and a terminal may be
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv, codes={}))
    limit = getattr(arguments, "max_pixels", None)
    with warnings.catch_warnings(), pixel_limit(limit) if limit else nullcontext():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        return run_verb(arguments.run, arguments, {BadSampleError: 1, WorkerError: 2, **arguments.codes})


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


def verb_parser(verbs: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a verb, added to argparse's subparsers; description and example are printed as they are."""
    return verbs.add_parser(name, help=summary, description=description, epilog=example, formatter_class=_AS_WRITTEN)


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the option of verbs that decode images: --max-pixels, Pillow's limit for this run."""
    parser.add_argument("--max-pixels", type=_at_least_one, metavar="N", help=_MAX_PIXELS)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return number


def add_debug(verbs: Any) -> None:
    """Add the option --debug to each verb of `ArgumentParser.add_subparsers`."""
    for verb in verbs.choices.values():
        verb.add_argument("--debug", action="store_true", help="show an error with its traceback")


def location(text: str) -> str:
    """A path in its plain form (no "./", no slash at the end); a URL as it is, without a slash at the end."""
    return text.rstrip("/") if "://" in text else str(Path(text))
