"""Results as Markdown, and the blocks of a page that are made of them.

A block begins with a line `<!-- bench FILE.json ... -->` and ends with `<!-- /bench -->`; files are relative to the
page.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .report import confidence, interval, measured, number

_BLOCK = re.compile(r"(<!-- bench (?P<files>[^>]+?) -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def read_results(path: Path) -> dict[str, Any]:
    """ValueError unless it is a file that bench wrote."""
    try:
        results = json.loads(path.read_text())
        assert results["format"] == 1
        assert results["contenders"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: expected results of python -m tools bench --json") from None
    return results


def filled(page: str, folder: Path) -> str:
    """The page with every block made anew; ValueError where it has none."""
    if not _BLOCK.search(page):
        raise ValueError("the page has no block: write <!-- bench FILE.json --> and <!-- /bench --> where it belongs")
    return _BLOCK.sub(lambda found: found[1] + rendered(found["files"].split(), folder), page)


def rendered(names: Sequence[str], folder: Path = Path()) -> str:
    """names: of files in the folder, as the page links to them."""
    return "\n".join("\n".join(_part(read_results(folder / name), name)) + "\n" for name in names)


def _part(results: dict[str, Any], name: str) -> Iterator[str]:
    """One file: what was measured where, the table, what is not in it."""
    yield f"{_data(results)}. {_machine(results)}. `{shlex.join(results['command'])}`, [{name}]({name})."
    yield ""
    yield "| contender | images/s | : first | source images/s | p99, ms | first batch, s | CPU us/image | MB |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    yield from map(_row, measured(results["contenders"]))
    if others := [one for one in results["contenders"] if one["status"] != "measured"]:
        yield ""
        yield "; ".join(f"{one['name']}: {one['status']} ({one['reason']})" for one in others) + "."
    if results["training"]:
        yield ""
        yield from _training(results)


def _row(contender: dict[str, Any]) -> str:
    found = contender["summary"]
    first_batch = found["set_up_seconds"] + found["first_batch_seconds"]
    numbers = [found["batch_ms"]["p99"], first_batch, found["cpu_us_per_image"], found["memory_mb"]]
    source = "" if found["images_per_second"]["too_noisy"] else number(found["source_images_per_second"])
    cells = [contender["name"], _estimated(found["images_per_second"]), _estimated(found["ratio"]), source]
    return f"| {' | '.join([*cells, *map(number, numbers)])} |"


def _estimated(found: dict[str, Any]) -> str:
    return f"{'too noisy' if found['too_noisy'] else number(found['median'])} [{interval(found)}]"


def _training(results: dict[str, Any]) -> Iterator[str]:
    yield "| training | images/s | : the model alone | the trainer waits |"
    yield "|---|---:|---:|---:|"
    for number_, contender in enumerate(measured(results["training"])):
        found = contender["summary"]
        waits = f"{100 * found['waiting']:.1f} %" if number_ else ""
        cells = [contender["name"], _estimated(found["images_per_second"]), _estimated(found["ratio"]), waits]
        yield f"| {' | '.join(cells)} |"


def _data(results: dict[str, Any]) -> str:
    data = results["data"]
    shape = " x ".join(map(str, data["shape"])) if data["shape"] else "of different sizes"
    return f"{data['kind']}: {data['samples']:,} images, {shape}, {data['encoding']}, {data['classes']} classes"


def _machine(results: dict[str, Any]) -> str:
    machine, options = results["machine"], results["options"]
    place = f"{machine['gpu']} and " if "gpu" in machine else ""
    noise = max(found["spread"] for found in results["noise"].values())
    return (
        f"{place}{machine['cores']} cores of {machine['cpu']}; batches of {options['batch_size']}; "
        f"[interval {confidence(results)}]; the same work differed by up to {100 * noise:.0f} % from round to round"
    )
