"""What `python -m train checks RUN --json RUN/checks.json` has found with AutoAttack, where it was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.files import read_json

CHECKS = "checks.json"
LAST_STAGE = "Square"  # each of AutoAttack's four is on what the ones before have left


def autoattack_of(run: Path) -> dict[str, Any] | None:
    """{"accuracy", "num_images", "eps", "masked"}, None without RUN/checks.json or AutoAttack in it.

    eps is in the model's input units; masked: whether any of the checks shows masked gradients.
    """
    path = run / CHECKS
    if not path.exists():
        return None
    report = read_json(path)
    try:
        for check in report["checks"]:
            if check["name"] == "AutoAttack":
                accuracy = check["figures"][LAST_STAGE]
                counted = {"num_images": report["num_images"], "eps": check["eps"], "masked": report["masked"]}
                return {"accuracy": accuracy, **counted}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report of `python -m train checks` ({error}): make it again") from error
    return None
