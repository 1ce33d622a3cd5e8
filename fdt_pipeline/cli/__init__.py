"""The command line of the package, `fdt-pipeline VERB ...`: results on stdout; progress, warnings and errors on stderr.

Exit codes: 0 fine, 1 a check failed, 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

_EXAMPLE = """example:
  fdt-pipeline shard train/data/fashion_mnist_subset runs/shards
  fdt-pipeline verify runs/shards
  fdt-pipeline info runs/shards"""
AddParser = Callable[[Any], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names, and return its exit code; SystemExit(2) for a wrong usage."""
    return run(argv, "fdt-pipeline", "Turn data sets into checked shards, and look after the native operators.")


def run(argv: Sequence[str] | None, prog: str, description: str, more_verbs: Sequence[AddParser] = ()) -> int:
    """Run a program called `prog`, which has `more_verbs` beside the package's, as `main` does."""
    try:
        from fdt_pipeline.cli import index, inspecting, native, preview, shard
        from fdt_pipeline.cli.command_line import add_debug, escape_unknown_characters, run_verb, show_warning
        from fdt_pipeline.shards import BadSampleError, WorkerError
    except KeyboardInterrupt:  # the imports may take seconds, and a traceback says nothing of use
        return 130
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in (shard, index, inspecting, preview, native):
        module.add_parsers(verbs)
    for add_parser in more_verbs:
        add_parser(verbs)
    add_debug(verbs)
    escape_unknown_characters(sys.stdout)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv, codes={}))
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        return run_verb(arguments.run, arguments, {BadSampleError: 1, WorkerError: 2, **arguments.codes})
