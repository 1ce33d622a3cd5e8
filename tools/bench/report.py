"""The table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

HEADINGS = (
    "contender", "images/s", "interval", ": first", "interval", "source images/s", "ms a batch p50 / p95 / p99",
    "set-up s", "first batch s", "first epoch images/s", "CPU us/image", "MB", "GPU MB", "bytes read/image",
)  # fmt: skip
TRAINING = ("training", "images/s", "interval", ": model alone", "interval", "trainer waits")


def report(results: dict[str, Any]) -> Iterator[str]:
    """Lines for people to read."""
    yield from _machine(results)
    yield ""
    yield from table([HEADINGS, *map(row, measured(results["contenders"]))])
    yield from _told(results["contenders"])
    if results["training"]:
        yield ""
        yield from table([TRAINING, *map(_training_row, measured(results["training"]))])
        yield from _told(results["training"])
    for name, sweep in results["sweeps"].items():
        for value, contenders in sweep.items():
            yield from ("", f"{name.replace('_', ' ')}: {value}")
            yield from table([HEADINGS, *map(row, measured(contenders))])
            yield from _told(contenders)


def measured(contenders: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [contender for contender in contenders if contender["status"] == "measured"]


def row(contender: dict[str, Any]) -> tuple[str, ...]:
    found = contender["summary"]
    batch = " / ".join(number(found["batch_ms"][key]) for key in ("p50", "p95", "p99"))
    numbers = (
        found["set_up_seconds"], found["first_batch_seconds"], found["first_epoch_images_per_second"],
        found["cpu_us_per_image"], found["memory_mb"], found["gpu_mb"], found["bytes_by_read_per_image"],
    )  # fmt: skip
    source = "" if found["images_per_second"]["too_noisy"] else number(found["source_images_per_second"])
    return (
        contender["name"], *estimated(found["images_per_second"]), *estimated(found["ratio"]), source, batch,
        *map(number, numbers),
    )  # fmt: skip


def _training_row(contender: dict[str, Any]) -> tuple[str, ...]:
    found = contender["summary"]
    waits = "" if "same batch" in contender["name"] else f"{100 * found['waiting']:.1f} %"
    return contender["name"], *estimated(found["images_per_second"]), *estimated(found["ratio"]), waits


def estimated(found: dict[str, Any]) -> tuple[str, str]:
    """Median and interval, or that it is too noisy."""
    return "too noisy" if found["too_noisy"] else number(found["median"]), interval(found)


def interval(found: dict[str, Any]) -> str:
    return f"{number(found['low'])} .. {number(found['high'])}"


def number(value: float) -> str:
    """Three digits, thousands apart."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *others]).rstrip()


def _machine(results: dict[str, Any]) -> Iterator[str]:
    machine, data, options = results["machine"], results["data"], results["options"]
    yield f"machine   {machine.get('gpu', machine['cpu'])}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    yield f"versions  {', '.join(f'{key} {value}' for key, value in results['versions'].items() if value)}"
    shape = " x ".join(map(str, data["shape"])) if data["shape"] else "sizes differ"
    classes = f"{data['samples']} images of {data['classes']} classes"
    yield f"data      {data['kind']}: {classes}, {shape}, {data['encoding']}"
    yield f"options   {', '.join(f'{key} {value}' for key, value in options.items() if value not in (None, []))}"
    spreads = ", ".join(f"{name} {100 * found['spread']:.1f} %" for name, found in results["noise"].items())
    yield f"noise     the same work took up to so much longer in one round than in another: {spreads}"
    yield f"interval  {confidence(results)}"


def confidence(results: dict[str, Any]) -> str:
    """What the intervals are."""
    shares = [one["summary"]["images_per_second"]["confidence"] for one in measured(results["contenders"])]
    share = f" ({100 * min(shares):.1f} %)" if shares else ""
    return f"of the median, from order statistics of {results['options']['repeats']} rounds{share}"


def _told(contenders: Sequence[dict[str, Any]]) -> Iterator[str]:
    for contender in contenders:
        if contender["status"] != "measured":
            yield f"{contender['name']}: {contender['status']}: {contender['reason']}"
        elif not contender["summary"]["rests"]:
            yield f"{contender['name']}: worked on while others were measured: their numbers suffer"
        if contender["note"]:
            yield f"{contender['name']}: {contender['note']}"
