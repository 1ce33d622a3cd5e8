"""The verb `index`: DALI's indexes of webdataset tars of any origin; with --out a manifest too, to train on them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fdt_pipeline.cli import add_max_pixels, location, verb_parser
from fdt_pipeline.cli.inspecting import stored_as
from fdt_pipeline.shards import (
    BadTarsError,
    InPlace,
    LabelField,
    classes_beside,
    index_in_place,
    label_field,
    read_classes,
    read_manifest,
)
from fdt_pipeline.shards.indexing import index_tar
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources.source import few
from fdt_pipeline.storage import Folder, open_folder

_DESCRIPTION = """Write the DALI index of each webdataset tar beside it: x.idx for x.tar. Only headers are read.

TARS are tars, or folders with tars in them. A right index is left alone, a wrong one is replaced. A tar
that is cut or broken, or whose samples are not whole, gets none (one that is there stays): the problem is printed with
the sample's key, all other tars get theirs, and the exit code is 1.

With --out DIR, make a set of them that FDTLoader, info, verify, preview and convert read where it lies: DIR gets a
manifest and the indexes. The tars stay as they are; they may be read-only, and tars, DIR and FILE may be URLs. Each tar
is read once, and each image decoded. Classes are FILE's, or those of the folder train beside DIR, or found in the
labels. Samples without an image or a label are named and left out; a broken tar ends it, with exit code 1 and nothing
written, as do tars of which no sample is left."""
_EXAMPLE = """example:
  fdt-pipeline index runs/shards/train
  fdt-pipeline index imagenet-000000.tar imagenet-000001.tar --json
  fdt-pipeline index s3://bucket/train --out runs/train --label json:label --classes names.txt"""
_NAME_ALL = 'name all to DALI\'s reader, ext=["{}", ...], which gives others as empty images'
_SHOWN = 5  # samples that are left out, in text


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "index", "write DALI's index of webdataset tars", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("tars", metavar="TARS", nargs="+", type=location, help="tars, or folders of tars")
    parser.add_argument("--out", type=location, metavar="DIR", help="folder for a manifest and the indexes")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, or JSON: a list, or name -> number")
    parser.add_argument("--label", metavar="L", help="where a label is: cls (default), txt or json:FIELD")
    parser.add_argument("--no-decode", action="store_true", help="look at the headers of images alone")
    add_max_pixels(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=run, codes={BadTarsError: 1})


def run(arguments: argparse.Namespace) -> int:
    given = {"--classes": arguments.classes, "--label": arguments.label, "--no-decode": arguments.no_decode}
    label = label_field(arguments.label or "cls")
    if arguments.out:
        return _set(arguments, label)
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} is for a set of tars: name the folder for its manifest with --out DIR")
    found = dict.fromkeys(tar for place in arguments.tars for tar in _tars(place))
    results = []
    for folder, name in found:
        result = _index(folder, name)
        results.append(result)
        if not arguments.json:
            for problem in result["problems"]:
                print(f"{result['tar']}: {problem}")
            outcome = "no index written, see above" if result["problems"] else result["index"]
            print(f"{result['tar']}: {result['num_samples']} samples, {outcome}")
            if spellings := result["spellings"]:
                advice = _NAME_ALL.format(";".join(spellings))
                print(f"{result['tar']}: its images end in {', '.join(spellings)}: {advice}")
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 1 if any(result["problems"] for result in results) else 0


def _set(arguments: argparse.Namespace, label: LabelField) -> int:
    tars = [tar for place in arguments.tars for tar in _tars(place)]
    out = open_folder(arguments.out)
    classes = read_classes(arguments.classes) if arguments.classes else classes_beside(arguments.out)
    whose = "from the list" if arguments.classes else "those of the folder train beside it"
    before = _tars_indexed(out)
    with progress_bar(f"index {out.url}", "tars") as progress:
        made = index_in_place(tars, out, classes, label, not arguments.no_decode, progress)
    if gone := sorted(before - {shard.name for shard in made.manifest.shards}):
        print(f"warning: {out.url}: no longer in its index: {few(gone)}", file=sys.stderr)
    report = _report(out, made)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    for bad in report["left_out"][:_SHOWN]:
        print(f"left out: {bad['sample']}: {bad['reason']}")
    if len(report["left_out"]) > _SHOWN:
        print(f"left out: {len(report['left_out']) - _SHOWN} more, which --json lists")
    print("\n".join(_lines(report, made, whose if classes else "")))
    return 0


def _tars_indexed(out: Folder) -> set[str]:
    """None where there is no manifest that can be read."""
    try:
        return {shard.name for shard in read_manifest(out).shards}
    except ValueError:
        return set()


def _report(out: Folder, made: InPlace) -> dict[str, Any]:
    """What --json prints."""
    manifest = made.manifest
    return {
        "out": out.url,
        "num_samples": manifest.num_samples,
        "classes": list(manifest.classes),
        "labels": manifest.labels,
        "samples_per_extension": manifest.samples_per_extension,
        "decoded": manifest.mean is not None,
        "turned_by_exif": made.num_turned,
        "tars": [{"tar": shard.name, "num_samples": shard.num_samples} for shard in manifest.shards],
        "empty_tars": list(made.empty),
        "left_out": [{"sample": bad.key, "reason": bad.reason} for bad in manifest.quarantine],
    }


def _lines(report: dict[str, Any], made: InPlace, whose: str) -> list[str]:
    """The same for people to read."""
    manifest = made.manifest
    size = " x ".join(map(str, manifest.shape)) if manifest.shape else "sizes differ"
    names = f"{manifest.classes[0]} to {manifest.classes[-1]}"
    source = whose or f"found in the labels, {names}; --classes FILE names them"
    empty = len(manifest.classes) - manifest.num_populated_classes
    lines = [
        f"{report['out']}: {manifest.num_samples} samples in {len(manifest.shards)} tars, "
        f"{len(manifest.quarantine)} left out",
        f"  images   {stored_as(manifest)}; {size}; "
        + ("decoded" if report["decoded"] else "only headers were looked at: mean and std are not known"),
        f"  labels   in {manifest.labels}",
        f"  classes  {len(manifest.classes)}, {source}" + f"; {empty} without samples" * bool(empty),
    ]
    if made.empty:
        lines.append(f"  empty    {len(made.empty)} tars without a sample to take: {few(made.empty)}")
    if made.num_turned:
        lines.append(f"  EXIF     would turn {made.num_turned} images; the loader shows them as they are stored")
    return lines


def _tars(place: str) -> list[tuple[Folder, str]]:
    """The tars that one argument names, as (folder, name); ValueError if there are none."""
    folder = open_folder(place)
    is_web = place.startswith(("http://", "https://"))  # which cannot be asked
    if is_web or folder.is_file():
        above, _, name = place.rpartition("/")
        if not name.endswith(".tar"):
            raise ValueError(f"{place}: expected a file that ends in .tar, so that its index can be named .idx")
        return [(open_folder(above or ("/" if place.startswith("/") else ".")), name)]
    names = [name for name in folder.names() if name.endswith(".tar")]
    if not names:
        fault = "no tars there" if folder.exists() else "no such file or folder"
        raise ValueError(f"{place}: {fault}; give webdataset tars, or folders that hold them")
    return [(folder, name) for name in names]


def _index(folder: Folder, name: str) -> dict[str, Any]:
    """What --json prints of a tar; index: "written", "unchanged", "replaced", or "none" where there are problems."""
    result = {"tar": folder.path(name), "num_samples": 0, "index": "none", "spellings": []}
    try:
        with folder.open(name) as tar:
            found = index_tar(tar)
    except OSError as error:
        return {**result, "problems": [f"could not be read: {error.strerror or error}"]}
    if not found.problems:
        result["index"] = _write(folder, name.removesuffix(".tar") + ".idx", found.text)
    return {**result, "num_samples": found.num_samples, "problems": found.problems, "spellings": found.spellings}


def _write(folder: Folder, name: str, text: bytes) -> str:
    is_there = folder.size(name) is not None
    if is_there and folder.read(name) == text:
        return "unchanged"
    with folder.writing(name) as file:
        file.write(text)
    return "replaced" if is_there else "written"
