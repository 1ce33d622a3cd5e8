"""The verbs `build` and `doctor`: the native operators, compiled ahead of time, and what is found on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fdt_pipeline.cli import verb_parser

_BUILD = """Compile the native operators now, in a Docker layer, say, and not at their first use.

They are kept in $FDT_PIPELINE_CACHE, or ~/.cache/fdt_pipeline. Exit code 1 if they cannot be compiled here."""
_BUILD_EXAMPLE = """example:
  fdt-pipeline build"""
_DOCTOR = """Say what is found here, which engine FDTLoader will take, and why.

Exit code 0 if the native engine can be used on the CPU (with --gpu: there as well), 1 if not."""
_DOCTOR_EXAMPLE = """example:
  fdt-pipeline doctor
  fdt-pipeline doctor --gpu"""


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "build", "compile the native operators now", _BUILD, _BUILD_EXAMPLE)
    parser.add_argument("--force", action="store_true", help="even if they are in the cache")
    parser.set_defaults(run=_build, codes={ImportError: 1})
    parser = verb_parser(verbs, "doctor", "say what is found here and which engine is taken", _DOCTOR, _DOCTOR_EXAMPLE)
    parser.add_argument("--gpu", action="store_true", help="run the operators on the GPU too, and check what they give")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_doctor, codes={ImportError: 1})


def _build(arguments: argparse.Namespace) -> int:
    from fdt_pipeline.native.build import build

    built = build(force=arguments.force)
    how = f"compiled in {built.seconds:.1f} s" if built.seconds else "it was there already"
    print(f"{built.path}\n{built.path.stat().st_size / 1e6:.1f} MB, {how}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from fdt_pipeline.native.doctor import examine, is_usable, report

    findings = examine(gpu=arguments.gpu)
    print(json.dumps(findings, indent=2) if arguments.json else report(findings))
    return 0 if is_usable(findings) else 1
