"""Results as tables, for the terminal and as Markdown for a page; and what two results differ by, beyond noise."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rounds import number
from .results import Contenders, describe_data, describe_machine, estimate, measured, races, rates, read_results

Row = Sequence[str]
SAME = ("data", "options")
# Options that change no rate.
REPEATING = ("repeats", "seconds", "widest", "timeout", "classes", "batch_sizes", "model")
HEADINGS = (
    "contender", "images/s", ": first", "source images/s", "p99, ms", "first batch, s", "CPU us/image", "MB",
)  # fmt: skip
# With --step, in milliseconds: the rate is the trainer's, and what counts is whether batches come evenly, and when.
STEPPED = (
    "contender", "images/s", "p50, ms", "p99, ms", "p99 : p50", "set-up, s", "first batch, s", "peak MB", "waits",
)  # fmt: skip
TRAINING = ("training", "images/s", ": the model alone", "the trainer waits")


def text_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines with aligned columns, the first to the left and the others to the right; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def markdown_table(rows: Sequence[Row]) -> Iterator[str]:
    """The same as Markdown."""
    heading, *others = rows
    yield f"| {' | '.join(heading)} |"
    yield f"|---|{'---:|' * (len(heading) - 1)}"
    yield from (f"| {' | '.join(cells)} |" for cells in others)


def report(results: dict[str, Any]) -> Iterator[str]:
    """Lines for people to read at a terminal."""
    options = {key: value for key, value in results["options"].items() if value not in (None, [])}
    spreads = ", ".join(f"{name} {100 * found['spread']:.1f} %" for name, found in results["noise"].items())
    yield f"machine   {describe_machine(results, ', ')}, {results['machine']['memory_gib']} GiB"
    yield f"versions  {', '.join(f'{key} {value}' for key, value in results['versions'].items() if value)}"
    yield f"data      {describe_data(results)}"
    yield f"options   {', '.join(f'{key} {value}' for key, value in options.items())}"
    yield f"noise     the same work took up to so much longer in one round than in another: {spreads}"
    yield f"interval  {_confidence(results)}"
    yield from ("", *_contenders(results, results["contenders"]))
    for name, contenders in races(results):
        yield ""
        if name == "training":
            yield from text_table([TRAINING, *map(_training_row, measured(contenders))])
            yield from _notes(contenders)
        else:
            yield from (name, *_contenders(results, contenders))


def _confidence(results: dict[str, Any]) -> str:
    """What the intervals are."""
    shares = [one["summary"]["images_per_second"]["confidence"] for one in measured(results["contenders"])]
    share = f" ({100 * min(shares):.1f} %)" if shares else ""
    return f"of the median, from order statistics of {results['options']['repeats']} rounds{share}"


def _contenders(results: dict[str, Any], contenders: Contenders) -> Iterator[str]:
    yield from text_table(_table(results, contenders))
    yield from _notes(contenders)


def _table(results: dict[str, Any], contenders: Contenders) -> list[Row]:
    headings, row = (STEPPED, _stepped_row) if results["options"].get("step") else (HEADINGS, _row)
    return [headings, *map(row, measured(contenders))]


def _row(contender: dict[str, Any]) -> Row:
    found = contender["summary"]
    source_images = "" if found["images_per_second"]["too_noisy"] else number(found["source_images_per_second"])
    first_batch = found["set_up_seconds"] + found["first_batch_seconds"]
    numbers = (found["batch_ms"]["p99"], first_batch, found["cpu_us_per_image"], found["memory_mb"])
    return (*_rates(contender), source_images, *map(number, numbers))


def _stepped_row(contender: dict[str, Any]) -> Row:
    found = contender["summary"]
    p50, p99 = (found["batch_ms"][key] for key in ("p50", "p99"))
    numbers = (p50, p99, p99 / p50, found["set_up_seconds"], found["first_batch_seconds"], found["peak_mb"])
    return (*_rates(contender)[:2], *map(number, numbers), f"{100 * found['waiting']:.1f} %")


def _training_row(contender: dict[str, Any]) -> Row:
    alone = "same batch" in contender["name"]
    return (*_rates(contender), "" if alone else f"{100 * contender['summary']['waiting']:.1f} %")


def _rates(contender: dict[str, Any]) -> Row:
    """Name, rate and ratio, with intervals."""
    found = (contender["summary"][key] for key in ("images_per_second", "ratio"))
    cells = (f"{_median(one)} [{number(one['low'])} .. {number(one['high'])}]" for one in found)
    return (contender["name"], *cells)


def _median(found: dict[str, Any]) -> str:
    return "too noisy" if found["too_noisy"] else number(found["median"])


def _notes(contenders: Contenders) -> Iterator[str]:
    """Why a contender was not measured, and what the reader should know."""
    for contender in contenders:
        if contender["status"] != "measured":
            yield f"{contender['name']}: {contender['status']}: {contender['reason']}"
        elif not contender["summary"]["rests"]:
            yield f"{contender['name']}: worked on while others were measured: their numbers suffer"
        if contender["note"]:
            yield f"{contender['name']}: {contender['note']}"


def rendered(names: Sequence[str], folder: Path = Path()) -> str:
    """Results as Markdown. names: of files in the folder, as the page links to them."""
    return "\n".join("\n".join(_part(read_results(folder / name), name)) + "\n" for name in names)


def _part(results: dict[str, Any], name: str) -> Iterator[str]:
    """One file: what was measured where, the table, and which contenders are not in it."""
    noise = max(found["spread"] for found in results["noise"].values())
    yield (
        f"{describe_data(results, 'of different sizes')}. {describe_machine(results, ' and ')}; "
        f"batches of {results['options']['batch_size']}; [interval {_confidence(results)}]; "
        f"the same work differed by up to {100 * noise:.0f} % from round to round. "
        f"`{shlex.join(results['command'])}`, [{name}]({name})."
    )
    yield from ("", *markdown_table(_table(results, results["contenders"])))
    if others := [one for one in results["contenders"] if one["status"] != "measured"]:
        yield from ("", "; ".join(f"{one['name']}: {one['status']} ({one['reason']})" for one in others) + ".")
    if results["training"]:
        yield from ("", *markdown_table([TRAINING, *map(_training_row, measured(results["training"]))]))
    if results["options"].get("step"):  # which the plots do not show
        for name, contenders in races(results):
            yield from ("", f"{name}:", "", *markdown_table(_table(results, contenders)))


@dataclass(frozen=True)
class Change:
    """How a contender's rate has changed.

    ratio: the later rate over the former; low and high: the least and most that it can be, from the intervals' ends.
    """

    name: str
    ratio: float
    low: float
    high: float

    def verdict(self, bound: float) -> str:
        """A regression is beyond noise, and more than `bound` of the rate."""
        if self.high < 1:
            return "regression" if self.ratio < 1 - bound else "slower, within the bound"
        return "faster" if self.low > 1 else "no change beyond noise"


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """The changes of what both have measured: images a second on one machine, ratios to the first contender on two.

    ValueError where the two do not measure the same.
    """
    _check_same(before, after)
    own_machine = before["machine"] == after["machine"]
    old, new = _values(before, own_machine), _values(after, own_machine)
    changes = []
    for name in (name for name in old if name in new):
        a, b = estimate(old[name]), estimate(new[name])
        changes.append(Change(name, b.median / a.median, b.low / a.high, b.high / a.low))
    if not changes:
        raise ValueError("the two results have no contender in common that was measured")
    return changes


def lost(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Contenders that were measured before and are refused or fail now, each with the reason."""
    names = {one["name"] for one in measured(before["contenders"])}
    return {
        one["name"]: f"{one['status']}: {one['reason']}"
        for one in after["contenders"]
        if one["name"] in names and one["status"] in ("refused", "failed")
    }


def _check_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for part in SAME:
        for key in sorted((before[part].keys() | after[part].keys()) - set(REPEATING)):
            old, new = before[part].get(key), after[part].get(key)
            if old != new:
                raise ValueError(f"the two cannot be compared: {part}, {key}: {old} and {new}")


def _values(results: dict[str, Any], own_machine: bool) -> dict[str, list[float]]:
    """Name -> rates of the rounds, or on two machines their ratios to the first contender's of the same race."""
    found = {}
    for race, contenders in [("", results["contenders"]), *races(results)]:
        for contender in measured(contenders):
            under = [1.0] * len(contender["turns"]) if own_machine else rates(measured(contenders)[0])
            name = f"{race}: {contender['name']}" if race else contender["name"]
            found[name] = [a / b for a, b in zip(rates(contender), under, strict=True)]
    return found


def describe_changes(
    before: dict[str, Any], after: dict[str, Any], changes: list[Change], bound: float
) -> Iterator[str]:
    """Lines for people to read."""
    if before["machine"] != after["machine"]:
        yield "Two machines: the ratios to the first contender of each run are compared."
    rows = [("contender", "after : before", "interval", "")]
    for change in changes:
        between = f"{change.low:.3f} .. {change.high:.3f}"
        rows.append((change.name, f"{change.ratio:.3f}", between, change.verdict(bound)))
    yield from text_table(rows)
    yield from (f"{name}: regression: {reason}" for name, reason in lost(before, after).items())
    old, new = before["versions"], after["versions"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} -> {new.get(name)}"
