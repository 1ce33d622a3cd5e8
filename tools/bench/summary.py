"""From the rounds' raw numbers to what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from .interval import estimate, paired_ratio, rounded

TOO_WIDE = 0.25


def summarize(contenders: Sequence[dict[str, Any]], widest: float = TOO_WIDE) -> None:
    """Adds a "summary" to each that was measured; ratios are to the first of them. widest: how far an interval may
    reach from the median, as a share of it, before it is called too noisy."""
    measured = [contender for contender in contenders if contender["status"] == "measured"]
    for contender in measured:
        contender["summary"] = _of_one(contender, measured[0], widest)


def rates(contender: dict[str, Any]) -> list[float]:
    return [turn["rate"] for turn in contender["turns"]]


def _of_one(contender: dict[str, Any], first: dict[str, Any], widest: float) -> dict[str, Any]:
    turns, start = contender["turns"], contender["start"]
    rate = estimate(rates(contender))
    ratio = paired_ratio(rates(contender), rates(first))
    taken = sum(turn["taken"] for turn in turns)
    return {
        "images_per_second": rate.to_dict() | {"too_noisy": rate.spread > widest},
        "ratio": ratio.to_dict() | {"too_noisy": ratio.spread > widest},
        "source_images_per_second": rounded(rate.median * contender["images_per_output"]),
        "batch_ms": {key: rounded(1e3 * median(turn[key] for turn in turns)) for key in ("p50", "p95", "p99")},
        "set_up_seconds": start["set_up_seconds"],
        "first_batch_seconds": start["first_batch_seconds"],
        "first_epoch_images_per_second": rounded(start["first_epoch"]["images"] / start["first_epoch"]["seconds"]),
        "cpu_us_per_image": rounded(1e6 * sum(turn["cpu"] for turn in turns) / taken),
        "memory_mb": rounded(max(used["memory"] for used in (start, *turns)) / 1e6),
        "peak_mb": rounded(max(used["peak"] for used in (start, *turns)) / 1e6),
        "gpu_mb": rounded(max(used["gpu"] for used in (start, *turns)) / 1e6),
        "bytes_by_read_per_image": rounded(sum(turn["by_read"] for turn in turns) / taken),
        "bytes_from_storage": start["from_storage"] + sum(turn["from_storage"] for turn in turns),
        "waiting": rounded(median(turn["waited"] / turn["seconds"] for turn in turns)),
        "rests": all(used["rests"] for used in (start, *turns)),
    }
