"""Results as tables: for the terminal, and as Markdown for a page."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..tables import markdown_table, text_table
from .intervals import measured

HEADINGS = (
    "contender", "images/s", "interval", ": first", "interval", "source images/s", "ms a batch p50 / p95 / p99",
    "set-up s", "first batch s", "first epoch images/s", "CPU us/image", "MB", "GPU MB", "bytes read/image",
)  # fmt: skip
TRAINING = ("training", "images/s", "interval", ": model alone", "interval", "trainer waits")
PAGE_HEADINGS = (
    "contender", "images/s", ": first", "source images/s", "p99, ms", "first batch, s", "CPU us/image", "MB",
)  # fmt: skip
PAGE_TRAINING = ("training", "images/s", ": the model alone", "the trainer waits")
_BLOCK = re.compile(r"(<!-- bench (?P<files>[^>]+?) -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def report(results: dict[str, Any]) -> Iterator[str]:
    """Lines for people to read at a terminal."""
    yield from _run(results)
    yield from ("", *_contenders(results["contenders"]))
    if results["training"]:
        rows = [(*_ratios(one), _waiting(one)) for one in measured(results["training"])]
        yield from ("", *text_table([TRAINING, *rows]), *_notes(results["training"]))
    for name, sweep in results["sweeps"].items():
        for value, contenders in sweep.items():
            yield from ("", f"{name.replace('_', ' ')}: {value}", *_contenders(contenders))


def _run(results: dict[str, Any]) -> Iterator[str]:
    """What was measured, where and how."""
    machine, data, options = results["machine"], results["data"], results["options"]
    yield f"machine   {machine.get('gpu', machine['cpu'])}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    yield f"versions  {', '.join(f'{key} {value}' for key, value in results['versions'].items() if value)}"
    shape = " x ".join(map(str, data["shape"])) if data["shape"] else "sizes differ"
    classes = f"{data['samples']} images of {data['classes']} classes"
    yield f"data      {data['kind']}: {classes}, {shape}, {data['encoding']}"
    yield f"options   {', '.join(f'{key} {value}' for key, value in options.items() if value not in (None, []))}"
    spreads = ", ".join(f"{name} {100 * found['spread']:.1f} %" for name, found in results["noise"].items())
    yield f"noise     the same work took up to so much longer in one round than in another: {spreads}"
    yield f"interval  {_confidence(results)}"


def _confidence(results: dict[str, Any]) -> str:
    """What the intervals are."""
    shares = [one["summary"]["images_per_second"]["confidence"] for one in measured(results["contenders"])]
    share = f" ({100 * min(shares):.1f} %)" if shares else ""
    return f"of the median, from order statistics of {results['options']['repeats']} rounds{share}"


def _contenders(contenders: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield from text_table([HEADINGS, *map(_row, measured(contenders))])
    yield from _notes(contenders)


def _row(contender: dict[str, Any]) -> tuple[str, ...]:
    found = contender["summary"]
    batch = " / ".join(number(found["batch_ms"][key]) for key in ("p50", "p95", "p99"))
    numbers = (
        found["set_up_seconds"], found["first_batch_seconds"], found["first_epoch_images_per_second"],
        found["cpu_us_per_image"], found["memory_mb"], found["gpu_mb"], found["bytes_by_read_per_image"],
    )  # fmt: skip
    return (*_ratios(contender), _source_images(found), batch, *map(number, numbers))


def _ratios(contender: dict[str, Any]) -> tuple[str, ...]:
    """Name, rate, interval, ratio and interval."""
    rate, ratio = contender["summary"]["images_per_second"], contender["summary"]["ratio"]
    return contender["name"], _median(rate), _interval(rate), _median(ratio), _interval(ratio)


def _source_images(found: dict[str, Any]) -> str:
    return "" if found["images_per_second"]["too_noisy"] else number(found["source_images_per_second"])


def _waiting(contender: dict[str, Any]) -> str:
    return "" if "same batch" in contender["name"] else f"{100 * contender['summary']['waiting']:.1f} %"


def _median(found: dict[str, Any]) -> str:
    return "too noisy" if found["too_noisy"] else number(found["median"])


def _interval(found: dict[str, Any]) -> str:
    return f"{number(found['low'])} .. {number(found['high'])}"


def number(value: float) -> str:
    """Three digits, with commas between thousands."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def _notes(contenders: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Why a contender was not measured, and what the reader should know."""
    for contender in contenders:
        if contender["status"] != "measured":
            yield f"{contender['name']}: {contender['status']}: {contender['reason']}"
        elif not contender["summary"]["rests"]:
            yield f"{contender['name']}: worked on while others were measured: their numbers suffer"
        if contender["note"]:
            yield f"{contender['name']}: {contender['note']}"


def read_results(path: Path) -> dict[str, Any]:
    """The content of a file that bench wrote; ValueError for any other."""
    try:
        results = json.loads(path.read_text())
        assert results["format"] == 1
        assert results["contenders"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: expected results of python -m tools bench --json") from None
    return results


def filled(page: str, folder: Path) -> str:
    """The page with the rendering of its files in every block.

    A block begins with a line `<!-- bench FILE.json ... -->` and ends with `<!-- /bench -->`; files lie in `folder`.
    """
    return _BLOCK.sub(lambda found: found[1] + rendered(found["files"].split(), folder), page)


def rendered(names: Sequence[str], folder: Path = Path()) -> str:
    """Results as Markdown. names: of files in the folder, as the page links to them."""
    return "\n".join("\n".join(_part(read_results(folder / name), name)) + "\n" for name in names)


def _part(results: dict[str, Any], name: str) -> Iterator[str]:
    """One file: what was measured where, the table, and which contenders are not in it."""
    yield f"{_setting(results)}. `{shlex.join(results['command'])}`, [{name}]({name})."
    yield from ("", *markdown_table([PAGE_HEADINGS, *map(_page_row, measured(results["contenders"]))]))
    if others := [one for one in results["contenders"] if one["status"] != "measured"]:
        yield from ("", "; ".join(f"{one['name']}: {one['status']} ({one['reason']})" for one in others) + ".")
    if results["training"]:
        rows = [(*_with_intervals(one), _waiting(one)) for one in measured(results["training"])]
        yield from ("", *markdown_table([PAGE_TRAINING, *rows]))


def _page_row(contender: dict[str, Any]) -> tuple[str, ...]:
    found = contender["summary"]
    first_batch = found["set_up_seconds"] + found["first_batch_seconds"]
    numbers = (found["batch_ms"]["p99"], first_batch, found["cpu_us_per_image"], found["memory_mb"])
    return (*_with_intervals(contender), _source_images(found), *map(number, numbers))


def _with_intervals(contender: dict[str, Any]) -> tuple[str, str, str]:
    name, rate, rate_interval, ratio, ratio_interval = _ratios(contender)
    return name, f"{rate} [{rate_interval}]", f"{ratio} [{ratio_interval}]"


def _setting(results: dict[str, Any]) -> str:
    data, machine, options = results["data"], results["machine"], results["options"]
    shape = " x ".join(map(str, data["shape"])) if data["shape"] else "of different sizes"
    place = f"{machine['gpu']} and " if "gpu" in machine else ""
    noise = max(found["spread"] for found in results["noise"].values())
    return (
        f"{data['kind']}: {data['samples']:,} images, {shape}, {data['encoding']}, {data['classes']} classes. "
        f"{place}{machine['cores']} cores of {machine['cpu']}; batches of {options['batch_size']}; "
        f"[interval {_confidence(results)}]; the same work differed by up to {100 * noise:.0f} % from round to round"
    )
