"""What is made of a race: medians with intervals, a summary of each contender, and results read from a file.

The intervals assume nothing but that the repeats are alike and independent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scipy import stats

from ..rounds import ratios, rounded

FORMAT = 1
CONFIDENCE = 0.95
TOO_WIDE = 0.25
Contenders = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """low and high: order statistics of the repeats, between which the true median lies with `confidence`."""

    median: float
    low: float
    high: float
    confidence: float

    @property
    def spread(self) -> float:
        """How far the interval reaches from the median, as a share of it: 0.25 is +-25 %."""
        return max(self.high - self.median, self.median - self.low) / self.median

    def to_dict(self, widest: float) -> dict[str, float | bool]:
        """The figures, and whether the interval reaches farther from the median than the share `widest`."""
        return {**{key: rounded(value) for key, value in vars(self).items()}, "too_noisy": self.spread > widest}


def estimate(values: Sequence[float]) -> Estimate:
    """The narrowest pair of order statistics that covers the median with CONFIDENCE.

    Of fewer than 6 repeats no pair does: then the least and the most, with the confidence that those have. Values are
    positive; ValueError where there are none.
    """
    if not values:
        raise ValueError("a median needs at least one value, got none")
    ordered, n = sorted(values), len(values)
    cut = max([k for k in range(1, (n + 1) // 2 + 1) if _confidence(n, k) >= CONFIDENCE], default=1)
    return Estimate(median(ordered), ordered[cut - 1], ordered[n - cut], _confidence(n, cut))


def _confidence(n: int, k: int) -> float:
    """The odds that the median lies between the k-th least and the k-th most of n values.

    Each tail of n fair coins then has at least k.
    """
    return float(1 - 2 * stats.binom.cdf(k - 1, n, 0.5))


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Estimate:
    """The ratio of what was measured in the same round: a clock that changes from round to round cancels."""
    return estimate(ratios(over, under))


def measured(contenders: Contenders) -> list[dict[str, Any]]:
    return [contender for contender in contenders if contender["status"] == "measured"]


def rates(contender: dict[str, Any]) -> list[float]:
    """Images a second of each round."""
    return [turn["rate"] for turn in contender["turns"]]


def summarize(contenders: Contenders, widest: float = TOO_WIDE) -> None:
    """Add a "summary" to each contender that was measured; ratios are to the first of them.

    widest: how far an interval may reach from the median, as a share of it, before it is called too noisy.
    """
    for contender in measured(contenders):
        contender["summary"] = _summary(contender, measured(contenders)[0], widest)


def _summary(contender: dict[str, Any], first: dict[str, Any], widest: float) -> dict[str, Any]:
    turns, start = contender["turns"], contender["start"]
    rate = estimate(rates(contender))
    taken = sum(turn["taken"] for turn in turns)

    def most(key: str) -> float:
        return rounded(max(used[key] for used in (start, *turns)) / 1e6)

    return {
        "images_per_second": rate.to_dict(widest),
        "ratio": paired_ratio(rates(contender), rates(first)).to_dict(widest),
        "source_images_per_second": rounded(rate.median * contender["images_per_output"]),
        "batch_ms": {key: rounded(1e3 * median(turn[key] for turn in turns)) for key in ("p50", "p95", "p99")},
        "set_up_seconds": start["set_up_seconds"],
        "first_batch_seconds": start["first_batch_seconds"],
        "first_epoch_images_per_second": rounded(start["first_epoch"]["images"] / start["first_epoch"]["seconds"]),
        "cpu_us_per_image": rounded(1e6 * sum(turn["cpu"] for turn in turns) / taken),
        "memory_mb": most("memory"),
        "peak_mb": most("peak"),
        "gpu_mb": most("gpu"),
        "bytes_by_read_per_image": rounded(sum(turn["by_read"] for turn in turns) / taken),
        "bytes_from_storage": start["from_storage"] + sum(turn["from_storage"] for turn in turns),
        "waiting": rounded(median(turn["waited"] / turn["seconds"] for turn in turns)),
        "rests": all(used["rests"] for used in (start, *turns)),
    }


def read_results(path: Path) -> dict[str, Any]:
    """The content of a file that bench wrote; ValueError for any other."""
    try:
        results = json.loads(path.read_text())
        assert results["format"] == FORMAT
        assert results["contenders"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: expected results of python -m tools bench --json") from None
    return results


def races(results: dict[str, Any]) -> Iterator[tuple[str, Contenders]]:
    """The name and the contenders of each race but the first, that of the loaders: the training and the sweeps."""
    if results["training"]:
        yield "training", results["training"]
    for name, sweep in results["sweeps"].items():
        for value, contenders in sweep.items():
            yield f"{name.replace('_', ' ')}, {value}", contenders


def describe_data(results: dict[str, Any], mixed_sizes: str = "sizes differ") -> str:
    """Which images were raced on."""
    data = results["data"]
    shape = " x ".join(map(str, data["shape"])) if data["shape"] else mixed_sizes
    return f"{data['kind']}: {data['samples']:,} images, {shape}, {data['encoding']}, {data['classes']} classes"


def describe_machine(results: dict[str, Any], joined: str) -> str:
    """The GPU, if there is one, and the cores; joined: what stands between them."""
    machine = results["machine"]
    return f"{machine['gpu'] + joined if 'gpu' in machine else ''}{machine['cores']} cores of {machine['cpu']}"
