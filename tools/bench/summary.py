"""The front page's table: a row a loader, a column a mixing, from several results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..rounds import number
from .report import Row, markdown_table
from .results import describe_data, describe_machine, measured, read_results

# How a contender's name begins -> what it is called here. Of several in one cell the first of the file counts.
LOADERS = {
    "ours, resident, native": "ours, set in memory",
    "ours, streaming, native": "ours, from shards",
    "DALI, webdataset": "DALI alone, from shards",
    "DataLoader": "DataLoader, torchvision v2",
    "timm": "timm",
    "FFCV": "FFCV",
}
MIXINGS = ("none", "mixup", "fdt")
HEADINGS = ("loader", "images/s, no mixing", "MixUp", "FDT", "p99 of a batch, ms", "memory, MB")


def summary(names: Sequence[str], folder: Path = Path()) -> str:
    """Results as one Markdown table and what they are of. names: of files in the folder, as the page links to them."""
    found = [(name, read_results(folder / name)) for name in names]
    rows = [row for _, results in found for row in _rows(results)]
    return "\n".join([*markdown_table([HEADINGS, *rows]), "", *(_of(results, name) for name, results in found)]) + "\n"


def _of(results: dict[str, Any], name: str) -> str:
    options = results["options"]
    return (
        f"{describe_data(results, 'of several sizes')}; {describe_machine(results, ' and ')}, batches of "
        f"{options['batch_size']}, medians of {options['repeats']} rounds: [{name}]({name})."
    )


def _rows(results: dict[str, Any]) -> Iterator[Row]:
    shape, crop = results["data"]["shape"], results["options"].get("crop")
    side = crop or shape[0]
    for begin, loader in LOADERS.items():
        own = [one for one in measured(results["contenders"]) if one["name"].startswith(begin)]
        if not own:
            continue
        cells = [_rate(one) for one in (_first(own, mixing) for mixing in MIXINGS)]
        p99 = max(one["summary"]["batch_ms"]["p99"] for one in own)
        memory = max(one["summary"]["memory_mb"] for one in own)
        yield (f"{loader}, {side} x {side}", *cells, number(p99), number(memory))


def _first(contenders: Sequence[dict[str, Any]], mixing: str) -> dict[str, Any] | None:
    return next((one for one in contenders if one["mixing"].startswith(mixing)), None)


def _rate(contender: dict[str, Any] | None) -> str:
    """Images a second, and what the name says of sums that are shorter than the paper's."""
    if contender is None:
        return ""
    found = contender["summary"]["images_per_second"]
    most = re.search(r" of (at most \d+)", contender["name"])
    return ("too noisy" if found["too_noisy"] else number(found["median"])) + (f" ({most[1]})" if most else "")
