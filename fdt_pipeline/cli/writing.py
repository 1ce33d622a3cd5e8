"""What the verbs that write shards, `shard` and `convert`, have in common: options, progress, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fdt_pipeline.machine import available_cpus
from fdt_pipeline.shards import Manifest, Progress
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.shards.staging import TIMM_INFO_NAME, Staging, timm_info_json
from fdt_pipeline.storage import open_folder

Write = Callable[..., Manifest]  # with a keyword argument `progress`


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the images, and those of the run."""
    parser.add_argument("--size", type=int, metavar="N", help="resize the shorter side to N and crop to N x N")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as there are CPUs)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was broken off")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that are in OUT")
    parser.add_argument(
        "--on-bad",
        choices=("stop", "quarantine"),
        default="stop",
        help="at an image that is not one: end the run, or leave it out and list it (default: %(default)s)",
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(interrupted="nothing was written")


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the run, as arguments of `write_shards` and of `convert_shards` alike."""
    options = {name: getattr(arguments, name) for name in ("overwrite", "resume", "on_bad", "engine")}
    return {**options, "workers": available_cpus() if arguments.workers is None else arguments.workers}


def write_sets(arguments: argparse.Namespace, writers: Mapping[str, Write]) -> dict[str, Manifest]:
    """Write each set to its folder, and print what was written."""
    manifests = {}
    for out, write in writers.items():
        with progress_bar(out, "samples") as progress:
            manifests[out] = _write(arguments, out, write, progress)
        if not arguments.json:
            _print_summary(out, manifests[out])
    _write_timm_info(arguments.out, {out.rpartition("/")[2]: manifest for out, manifest in manifests.items()})
    if arguments.json:
        print(json.dumps([_summary(out, manifest) for out, manifest in manifests.items()], indent=2))
    return manifests


def _write(arguments: argparse.Namespace, out: str, write: Write, progress: Progress) -> Manifest:
    """Write one set. Ctrl-C then says what is kept of it, and how to go on."""
    done = total = 0

    def counted(now: int, of: int) -> None:
        nonlocal done, total
        done, total = now, of
        progress(now, of)

    try:
        return write(progress=counted)
    except KeyboardInterrupt:
        instead = " in place of --overwrite" if arguments.overwrite else ""
        finished = f"{done} of {total} samples are finished and" if done else "what is finished is"
        arguments.interrupted = f"{out}: {finished} kept: the same command with --resume{instead} goes on"
        if not Staging(open_folder(out)).exists:  # removed at the end, or as it holds nothing
            arguments.interrupted = f"{out}: {'complete' if done else 'nothing was finished, so nothing is kept'}"
        raise


def _write_timm_info(out: str, manifests: Mapping[str, Manifest]) -> None:
    """Write timm's `_info.json` beside the folders of several splits, so that timm finds them by their names.

    manifests: folder below `out` -> manifest. Raw sets, which timm cannot read, get none.
    """
    if len(manifests) > 1 and all(manifest.encoding != "raw" for manifest in manifests.values()):
        with open_folder(out).writing(TIMM_INFO_NAME) as file:
            file.write(timm_info_json(manifests))


def _summary(out: str, manifest: Manifest) -> dict[str, Any]:
    """What --json prints of a set."""
    return {
        "out": out,
        "split": manifest.split,
        "encoding": manifest.encoding,
        "stored_as": manifest.samples_per_extension,
        "num_shards": len(manifest.shards),
        "num_samples": manifest.num_samples,
        "num_classes": len(manifest.classes),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "quarantine": [{"position": bad.position, "key": bad.key, "reason": bad.reason} for bad in manifest.quarantine],
    }


def stored(manifest: Manifest) -> str:
    """How many images are stored in which format, such as "20 jpg, 10 png"."""
    return ", ".join(f"{count} {extension}" for extension, count in manifest.samples_per_extension.items())


def _print_summary(out: str, manifest: Manifest) -> None:
    """Print the result to stdout, and every bad sample to stderr."""
    print(
        f"{out}: shards: {len(manifest.shards)}, samples: {manifest.num_samples}, classes: {len(manifest.classes)}, "
        f"stored as: {stored(manifest)}"
    )
    for bad in manifest.quarantine:
        print(f"bad: {bad.key}: {bad.reason}", file=sys.stderr)
    if not manifest.quarantine:
        return
    number = len(manifest.quarantine)
    print(f"{out}: {number} bad samples were left out; the manifest lists them under quarantine", file=sys.stderr)
    for name, count in zip(manifest.classes, manifest.samples_per_class, strict=True):
        if not count:
            print(f"warning: {out}: no sample of class {name} is left", file=sys.stderr)
