"""The verb `index`: DALI's indexes of webdataset tars, whoever made them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fdt_pipeline.cli import location, verb_parser
from fdt_pipeline.shards.indexing import index_tar
from fdt_pipeline.storage import Folder, open_folder

_DESCRIPTION = """Write the DALI index of each webdataset tar beside it: x.idx for x.tar. Only headers are read.

TARS are tars, or folders with tars in them. A right index is left alone, a wrong one is replaced. A tar
that is cut or broken, or whose samples are not whole, gets none (one that is there stays): the problem is printed with
the sample's key, all other tars get theirs, and the exit code is 1."""
_EXAMPLE = """example:
  fdt-pipeline index runs/shards/train
  fdt-pipeline index imagenet-000000.tar imagenet-000001.tar --json"""


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "index", "write DALI's index of webdataset tars", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("tars", metavar="TARS", nargs="+", type=location, help="tars, or folders of tars")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
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
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 1 if any(result["problems"] for result in results) else 0


def _tars(place: str) -> list[tuple[Folder, str]]:
    """The tars that one argument names, as (folder, name); ValueError if there are none."""
    folder = open_folder(place)
    if folder.is_file():
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
    result = {"tar": folder.path(name), "num_samples": 0, "index": "none"}
    try:
        with folder.open(name) as tar:
            found = index_tar(tar)
    except OSError as error:
        return {**result, "problems": [f"could not be read: {error.strerror or error}"]}
    if not found.problems:
        result["index"] = _write(folder, name.removesuffix(".tar") + ".idx", found.text)
    return {**result, "num_samples": found.num_samples, "problems": found.problems}


def _write(folder: Folder, name: str, text: bytes) -> str:
    is_there = folder.size(name) is not None
    if is_there and folder.read(name) == text:
        return "unchanged"
    with folder.writing(name) as file:
        file.write(text)
    return "replaced" if is_there else "written"
