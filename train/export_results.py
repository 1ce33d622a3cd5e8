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
    """Each is None where its file is not there. training is results.json, checks is the report of the checks."""

    training: Mapping[str, Any] | None = None
    robustness: Robustness | None = None
    checks: Mapping[str, Any] | None = None


def results_of(folder: Path, run: SavedRun, weights: str) -> Results:
    """ValueError, with what to run again, for figures of another epoch's weights than `run` holds."""
    training = _read(folder / RESULTS)
    robustness = _read(folder / ROBUSTNESS)
    row = None if robustness is None else _row(robustness, run, folder / ROBUSTNESS, weights)
    checks = _read(folder / CHECKS)
    if checks is not None:
        _check_epoch(checks["epoch"], run, folder / CHECKS, weights)
    return Results(training, row, checks)


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _row(content: Mapping[str, Any], run: SavedRun, path: Path, weights: str) -> Robustness:
    """The run's own among several models; the demo's file holds nothing else, and final weights."""
    if "models" not in content:
        _check_epoch(run.epoch if weights == "final" else -1, run, path, weights)
        return Robustness.from_dict(content)
    same = [model for model in content["models"].values() if Path(model["run"]).resolve() == path.parent.resolve()]
    named = [model for model in content["models"].values() if model["recipe"]["name"] == run.name]
    found = same or named
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} models like {run.name}: make it again with this run alone")
    _check_epoch(found[0]["epoch"], run, path, weights)
    return Robustness.from_dict(found[0])


def _check_epoch(epoch: int, run: SavedRun, path: Path, weights: str) -> None:
    if epoch != run.epoch:
        raise ValueError(
            f"{path} is not of the {weights} weights (epoch {run.epoch}): make it again with --weights {weights}, or "
            "move it away"
        )
