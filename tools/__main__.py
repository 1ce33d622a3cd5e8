"""`python -m tools VERB`: the verbs of `fdt-pipeline` in a checkout, `bench` and `gpu`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fdt_pipeline.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names, and return its exit code; SystemExit(2) for a wrong usage."""
    try:
        from tools import gpu
        from tools.bench import command
    except KeyboardInterrupt:  # the import takes a second, and a traceback says nothing of use
        return 130
    description = "Turn data sets into checked shards, and race data loaders on them."
    return run(argv, "python -m tools", description, [command.add_parser, gpu.add_parser])


if __name__ == "__main__":
    sys.exit(main())
