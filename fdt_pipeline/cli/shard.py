"""The verbs `shard` and `convert`: write a data set as shards, and shards again in another encoding."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fdt_pipeline.cli import add_max_pixels, location, verb_parser
from fdt_pipeline.cli.inspecting import stored_as
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.shards import (
    EXTENSIONS,
    Manifest,
    ShardingOptions,
    check_vacant,
    classes_beside,
    convert_shards,
    read_manifest,
    shard_sets,
    write_shards,
)
from fdt_pipeline.shards.manifest import TIMM_INFO_NAME, timm_info_json
from fdt_pipeline.shards.plan import planned
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.shards.staging import Staging
from fdt_pipeline.sources import KINDS, Source, download_source, open_source, source_splits, with_classes
from fdt_pipeline.storage import is_url, open_folder

_SHARD = """Write SOURCE as shards to OUT: every image checked, shuffled, indexed and hashed.

All splits of SOURCE go to OUT/train, OUT/test; the one of --split, or a SOURCE without splits, to OUT itself.
SOURCE and OUT are paths or fsspec URLs (s3://, gs://, http(s):// to read from). OUT is as it was until all of a
split is written; a run that was broken off goes on with --resume."""
_SHARD_EXAMPLE = """example:
  fdt-pipeline shard train/data/fashion_mnist_subset runs/shards
  fdt-pipeline shard photos runs/photos --on-bad quarantine --max-shard-bytes 500000000"""
_CONVERT = """Write the shards in IN, or in its subfolders (train, test), to OUT in another encoding.

The same samples, keys and order, shard by shard. From raw, png or webp to raw, png or webp no pixel changes, and the
way back gives the first bytes again. The hashes of IN are checked first."""
_CONVERT_EXAMPLE = """example:
  fdt-pipeline convert runs/shards runs/webp --encode webp"""
Write = Callable[..., Manifest]  # with a keyword argument `progress`


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "shard", "write a data set as shards", _SHARD, _SHARD_EXAMPLE)
    parser.add_argument("source", metavar="SOURCE", type=location, help="folder or file of the data set")
    parser.add_argument("out", metavar="OUT", type=location, help="folder to write to; made if it is not there")
    parser.add_argument("--split", metavar="S", help="write this split alone, such as train or test (default: all)")
    parser.add_argument(
        "--source", dest="kind", metavar="KIND", help=f"{', '.join(KINDS)} (default: seen from the files)"
    )
    labels_help = (
        "labels of the images in SOURCE: CSV, TSV, JSON lines or text; :NAME_COLUMN:LABEL_COLUMN after it names"
    )
    parser.add_argument("--labels", metavar="FILE", help=f"{labels_help} two columns (default: found)")
    encode_help = "how images are stored (default: keep for image files that are not resized, else raw)"
    parser.add_argument("--encode", choices=tuple(EXTENSIONS), help=encode_help)
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--max-shard-bytes", type=int, metavar="B", help="end a tar before it is larger than this")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order (default: %(default)s)")
    _add_common_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be written; decode and write nothing")
    parser.add_argument("--download", action="store_true", help="fetch the data set to SOURCE first; needs --source")
    parser.set_defaults(run=_shard)
    parser = verb_parser(verbs, "convert", "write shards again in another encoding", _CONVERT, _CONVERT_EXAMPLE)
    parser.add_argument("shards", metavar="IN", type=location, help="folder of shards, or of train/ and test/")
    parser.add_argument("out", metavar="OUT", type=location, help="folder to write to; made if it is not there")
    parser.add_argument("--encode", choices=tuple(EXTENSIONS), required=True, help="how images are to be stored")
    _add_common_options(parser)
    parser.set_defaults(run=_convert)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `shard` and `convert` share."""
    parser.add_argument("--size", type=int, metavar="N", help="resize the shorter side to N and crop to N x N")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as there are CPUs)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was broken off")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that are in OUT")
    bad_help = "at an image that is not one: end the run, or leave it out and list it (default: %(default)s)"
    parser.add_argument("--on-bad", choices=("stop", "quarantine"), default="stop", help=bad_help)
    add_max_pixels(parser)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(interrupted="nothing was written")


def _run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the run, as arguments of `write_shards` and of `convert_shards` alike."""
    options = {name: getattr(arguments, name) for name in ("overwrite", "resume", "on_bad", "engine")}
    return {**options, "workers": available_cpus() if arguments.workers is None else arguments.workers}


def _shard(arguments: argparse.Namespace) -> int:
    _check_apart(arguments.source, arguments.out)
    if arguments.download:
        download_source(Path(arguments.source), arguments.kind)
    splits = source_splits(arguments.source, arguments.kind, arguments.labels)
    outs: dict[str | None, str] = {split: f"{arguments.out}/{split}" for split in splits}
    if arguments.split is not None or not splits:
        outs = {arguments.split: arguments.out}
    for out in outs.values():
        check_vacant(open_folder(out), arguments.overwrite, arguments.resume)
    # All are opened before any is written, so that a fault of one leaves nothing of the others.
    sources = {
        out: open_source(arguments.source, arguments.kind, split, labels=arguments.labels)
        for split, out in outs.items()
    }
    for out, source in sources.items():
        train = f"{out.rstrip('/').rpartition('/')[0]}/train"
        if train not in sources and (classes := classes_beside(out)):
            sources[out] = with_classes(source, classes, train)
    if arguments.dry_run:
        return _print_plans(arguments, sources)
    writers = {
        out: partial(write_shards, source, out, **vars(_options(arguments, source)) | _run_options(arguments))
        for out, source in sources.items()
    }
    manifests = _write_sets(arguments, writers)
    return 1 if any(manifest.quarantine for manifest in manifests.values()) else 0


def _check_apart(source: str, out: str) -> None:
    """ValueError if OUT lies in SOURCE."""
    above, below = (place if is_url(place) else os.path.realpath(place) for place in (source, out))
    if f"{below}/".startswith(f"{above.rstrip('/')}/"):
        raise ValueError(
            f"{out}: lies in SOURCE, where the shards would be taken for data; choose an OUT outside {source}"
        )


def _options(arguments: argparse.Namespace, source: Source) -> ShardingOptions:
    """Files are kept by default: decoded, photographs take ten times the room. Small arrays are read fastest raw."""
    default = "keep" if hasattr(source, "read_file") and arguments.size is None else "raw"
    encoding, bounds = arguments.encode or default, (arguments.samples_per_shard, arguments.max_shard_bytes)
    return ShardingOptions(encoding, arguments.size, *bounds, arguments.seed)


def _print_plans(arguments: argparse.Namespace, sources: dict[str, Source]) -> int:
    """--dry-run: what would be written to each folder."""
    plans, least = [], "at least " if arguments.max_shard_bytes else ""
    for out, source in sources.items():
        options = _options(arguments, source)
        num_samples, num_classes, num_shards = len(source), len(source.classes), planned(source, options).num_tasks
        plan = {"out": out, "kind": source.kind, "split": source.split, "encoding": options.encoding}
        plans.append(plan | {"num_samples": num_samples, "num_classes": num_classes, "num_shards": num_shards})
        if not arguments.json:
            contents = f"{num_samples} samples of {num_classes} classes, {options.encoding}"
            print(f"{out}: would write {contents}, in {least}{num_shards} shards")
    if arguments.json:
        print(json.dumps(plans, indent=2))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    sets = {}
    for folder in shard_sets(arguments.shards):
        subfolder = "" if folder.url == arguments.shards else f"/{folder.url.rpartition('/')[2]}"
        sets[f"{arguments.out}{subfolder}"] = folder
    for out in sets:
        check_vacant(open_folder(out), arguments.overwrite, arguments.resume)
    options = {"encoding": arguments.encode, "size": arguments.size, **_run_options(arguments)}
    writers = {out: partial(convert_shards, folder, out, **options) for out, folder in sets.items()}
    manifests = _write_sets(arguments, writers)
    has_bad = any(
        len(manifests[out].quarantine) > len(read_manifest(folder).quarantine) for out, folder in sets.items()
    )
    return 1 if has_bad else 0


def _write_sets(arguments: argparse.Namespace, writers: Mapping[str, Write]) -> dict[str, Manifest]:
    """Write each set to its folder, and print what was written."""
    manifests = {}
    for out, write in writers.items():
        manifests[out] = _write(arguments, out, write)
        if not arguments.json:
            _print_summary(out, manifests[out])
    # timm finds the splits by their names; it cannot read raw images.
    if len(manifests) > 1 and all(manifest.encoding != "raw" for manifest in manifests.values()):
        info = timm_info_json({out.rpartition("/")[2]: manifest for out, manifest in manifests.items()})
        with open_folder(arguments.out).writing(TIMM_INFO_NAME) as file:
            file.write(info.encode("ascii"))
    if arguments.json:
        print(json.dumps([_summary(out, manifest) for out, manifest in manifests.items()], indent=2))
    return manifests


def _write(arguments: argparse.Namespace, out: str, write: Write) -> Manifest:
    """Write one set. Ctrl-C then says what is kept of it, and how to go on."""
    try:
        with progress_bar(out, "samples") as progress:
            return write(progress=progress)
    except KeyboardInterrupt:
        instead = " in place of --overwrite" if arguments.overwrite else ""
        arguments.interrupted = f"{out}: what is finished is kept: the same command with --resume{instead} goes on"
        if not Staging(open_folder(out)).exists:
            arguments.interrupted = f"{out}: no unfinished run is kept there"
        raise


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
        "quarantine": [asdict(bad) for bad in manifest.quarantine],
    }


def _print_summary(out: str, manifest: Manifest) -> None:
    """Print the result to stdout, and every bad sample to stderr."""
    print(
        f"{out}: shards: {len(manifest.shards)}, samples: {manifest.num_samples}, classes: {len(manifest.classes)}, "
        f"stored as: {stored_as(manifest)}"
    )
    for bad in manifest.quarantine:
        print(f"bad: {bad.key}: {bad.reason}", file=sys.stderr)
    if number := len(manifest.quarantine):
        print(f"{out}: {number} bad samples were left out; the manifest lists them under quarantine", file=sys.stderr)
    for name, count in zip(manifest.classes, manifest.samples_per_class, strict=True):
        if number and not count:
            print(f"warning: {out}: no sample of class {name} is left", file=sys.stderr)
