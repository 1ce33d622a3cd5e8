"""What is known of a trained run, from the files beside its checkpoint: accuracy, robustness, checks of the attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.files import RESULTS, read_json
from train.robust_accuracy import Robustness
from train.saved_run import SavedRun

ROBUSTNESS = "robustness.json"  # of `python -m train robustness RUN --json RUN/robustness.json`, or of the demo
CHECKS = "checks.json"  # of `python -m train checks RUN --json RUN/checks.json`


@dataclass(frozen=True)
class Results:
    """Each is None where its file is not there. training is results.json, checks is the report of the checks.

    without_weights: the files that do not say by a hash which weights they are of, as older versions wrote them.
    """

    training: Mapping[str, Any] | None = None
    robustness: Robustness | None = None
    checks: Mapping[str, Any] | None = None
    without_weights: tuple[str, ...] = ()


def results_of(folder: Path, run: SavedRun, weights: str) -> Results:
    """ValueError, with what to run again, for figures of other weights than `run` holds, or of other test shards."""
    training, robustness, checks = (_read(folder / name) for name in (RESULTS, ROBUSTNESS, CHECKS))
    row = None if robustness is None else _row(robustness, run, folder / ROBUSTNESS, weights)
    if training is not None:
        known = {"weights": training["weights"]} if weights == "final" and "weights" in training else None
        _check(folder / RESULTS, training[weights]["epoch"], known, run, weights)
    without = []
    for name, content in ((ROBUSTNESS, row), (CHECKS, checks)):
        if content is not None:
            _check(folder / name, content["epoch"], content.get("made_from"), run, weights)
            without += [] if "made_from" in content else [name]
    return Results(training, Robustness.from_dict(row) if row else None, checks, tuple(without))


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _row(content: Mapping[str, Any], run: SavedRun, path: Path, weights: str) -> Mapping[str, Any]:
    """The run's own among several models; the demo's file holds nothing else, and final weights."""
    if "models" not in content:
        return {"epoch": run.epoch if weights == "final" else -1, **content}
    same = [model for model in content["models"].values() if Path(model["run"]).resolve() == path.parent.resolve()]
    named = [model for model in content["models"].values() if model["recipe"]["name"] == run.name]
    found = same or named
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} models like {run.name}: make it again with this run alone")
    return found[0]


def _check(path: Path, epoch: int, made_from: Mapping[str, Any] | None, run: SavedRun, weights: str) -> None:
    """By the hashes where they are recorded, else by the epoch alone."""
    expected = {"weights": run.weights, "shards": run.config["shards"].get("test")}
    differing = [name for name, value in (made_from or {}).items() if expected.get(name) not in (None, value)]
    if epoch != run.epoch or "weights" in differing:
        raise ValueError(
            f"{path} is not of the {weights} weights (epoch {run.epoch}): make it again with --weights {weights}, or "
            "move it away"
        )
    if differing:
        raise ValueError(f"{path} is not of the run's test shards: make it again without --data, or move it away")
