"""What `python -m train checks RUN --json RUN/checks.json` has found with AutoAttack, where it was run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.files import read_json

CHECKS = "checks.json"
LAST_STAGE = "Square"  # each of AutoAttack's four is on what the ones before have left


def autoattack_of(run: Path, training: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"accuracy", "num_images", "eps", "masked", "weights"}, None without RUN/checks.json or AutoAttack in it.

    training is results.json. eps is in the model's input units; masked: whether any of the checks shows masked
    gradients; weights: sha256, None where an older version did not record it. ValueError for checks of other weights
    than the final ones, or of other samples than the test shards.
    """
    path = run / CHECKS
    if not path.exists():
        return None
    report = read_json(path)
    try:
        found = report.get("made_from", {})
        expected = {"weights": training.get("weights"), "shards": training["shards"]["test"]}
        other = any(expected.get(name) not in (None, value) for name, value in found.items())
        if other or report.get("weights", "final") != "final":
            raise ValueError(
                f"{path} is of other weights or other samples ({found}) than the run's final ones and its test shards "
                f"({expected}): make it again without --weights and --data, or move it away"
            )
        for check in report["checks"]:
            if check["name"] == "AutoAttack":
                accuracy = check["figures"][LAST_STAGE]
                counted = {"num_images": report["num_images"], "eps": check["eps"], "masked": report["masked"]}
                counted["weights"] = found.get("weights")
                return {"accuracy": accuracy, **counted}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report of `python -m train checks` ({error}): make it again") from error
    return None
