"""The command line of the installed package: `python -m fdt_pipeline VERB`, about the native engine.

Exit codes: 0 the native engine can be used, 1 it cannot, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

try:
    from fdt_pipeline.command_line import add_debug, run_verb
    from fdt_pipeline.native.build import build
    from fdt_pipeline.native.doctor import examine, is_usable, report
except KeyboardInterrupt:  # they take seconds, and a traceback says nothing of use
    sys.exit(130)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code; SystemExit(2) for a wrong usage."""
    arguments = _parser().parse_args(argv)
    return run_verb(arguments.run, arguments, {ImportError: 1})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fdt_pipeline", description="Build and examine the native engine.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    verb = verbs.add_parser("build", help="compile the native operators now, in a Docker layer, say")
    verb.add_argument("--force", action="store_true", help="even if they are in the cache ($FDT_PIPELINE_CACHE)")
    verb.set_defaults(run=_build)
    verb = verbs.add_parser("doctor", help="what is found here, and which engine FDTLoader will take, and why")
    verb.add_argument("--json", action="store_true", help="for a program to read")
    verb.set_defaults(run=_doctor)
    add_debug(verbs)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    built = build(force=arguments.force)
    print(f"{built.path}\nkey {built.key}, {built.path.stat().st_size / 1e6:.1f} MB, ", end="")
    print(f"compiled in {built.seconds:.1f} s" if built.seconds else "it was there already")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    findings = examine()
    print(json.dumps(findings, indent=2) if arguments.json else report(findings))
    return 0 if is_usable(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
