"""The model card of an exported run: what it is, how to call it, and its figures with what they do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.robust_accuracy import Robustness
from train.robustness_table import format_table
from train.saved_run import SavedRun
from train.setup import is_own

SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Results:
    """What is known of a run, each None where it was not measured: results.json, its row, the report of the checks."""

    training: Mapping[str, Any] | None = None
    robustness: Robustness | None = None
    checks: Mapping[str, Any] | None = None


def model_card(
    run: SavedRun, config: Mapping[str, Any], results: Results, num_folded: int, onnx_difference: float
) -> str:
    """Markdown. onnx_difference: of ONNX Runtime's logits to PyTorch's, as measured while exporting."""
    parts = [
        _head(run, config),
        _files(num_folded, onnx_difference, config),
        _use(config),
        _accuracy(run, results),
        _robustness(run, results),
        _training(config["recipe"], results),
    ]
    return "\n\n".join(parts) + "\n"


def _head(run: SavedRun, config: Mapping[str, Any]) -> str:
    recipe, classes = config["recipe"], config["classes"]
    shown = ", ".join(map(str, classes[:SHOWN_CLASSES])) + (", ..." if len(classes) > SHOWN_CLASSES else "")
    methods = ["tensor normalization"] * bool(recipe["tensor_norm"])
    methods += ["Full Distribution Training"] * bool(recipe["fdt"])
    trained = f"trained with {' and '.join(methods)}" if methods else "trained without tensor normalization and FDT"
    return (
        "---\nlibrary_name: pytorch\ntags:\n- image-classification\n- full-distribution-training\n- onnx\n---\n\n"
        f"# {run.name}\n\n`{recipe['model']}`, {trained}, with the weights after epoch {run.epoch}. "
        f"{len(classes)} classes: {shown}."
    )


def _files(num_folded: int, difference: float, config: Mapping[str, Any]) -> str:
    folded = f"; {num_folded} sites of tensor normalization are folded into its weights" if num_folded else ""
    opened = "n is open" if is_own(config["recipe"]["model"]) else "n, h and w are open"
    return (
        "## Files\n\n"
        f"- `model.onnx`: images f32[n {config['in_channels']} h w], standardized, to logits "
        f"f32[n {len(config['classes'])}]; {opened}{folded}. ONNX Runtime's logits differ from PyTorch's by "
        f"at most {difference:.1e}.\n"
        "- `model.safetensors`: the weights as they were trained, for the lines below.\n"
        "- `config.json`: recipe, all classes, and the normalization of the input."
    )


def _use(config: Mapping[str, Any]) -> str:
    given = config["input"]
    height, width = given["size"]
    mean, std = (tuple(given[name]) for name in ("mean", "std"))
    return f"""## Use

Pixels in 0..255, RGB, {height} x {width} in training:

```python
import numpy as np
import onnxruntime

pixels = np.zeros((1, {config["in_channels"]}, {height}, {width}), np.float32)
mean, std = np.array([{mean}, {std}], np.float32).reshape(2, -1, 1, 1)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
[logits] = session.run(None, {{"images": (pixels - mean) / std}})
```

In a checkout of fdt-pipeline:

```python
from pathlib import Path

import torch
from safetensors.torch import load_file
from train.files import read_json
from train.setup import make_model

config = read_json(Path("config.json"))
model = make_model(config["recipe"], {len(config["classes"])}, {config["in_channels"]}, torch.device("cpu"))
model.load_state_dict(load_file("model.safetensors"))
model.eval()
```"""


def _accuracy(run: SavedRun, results: Results) -> str:
    training = results.training
    if training is None or training["final"]["accuracy"] is None:
        return "## Accuracy\n\nNot measured: the run had no test shards, or is not finished."
    rows = [("final", training["final"]), ("best, chosen on the test set", training["best"])]
    lines = [f"| {name} | {row['epoch']} | {100 * row['accuracy']:.2f} |" for name, row in rows]
    here = "final" if run.epoch == training["final"]["epoch"] else "best"
    return "\n".join(
        [
            f"## Accuracy\n\nTest accuracy in percent, one seed. These files hold the {here} weights.\n",
            "| weights | epoch | accuracy |",
            "| --- | ---: | ---: |",
            *lines,
        ]
    )


def _robustness(run: SavedRun, results: Results) -> str:
    if results.robustness is None:
        text = "Not measured: `python -m train robustness RUN --json RUN/robustness.json` before the export."
    else:
        text = format_table({run.name: results.robustness}).rstrip()
    return f"## Robustness\n\n{text}\n\n{_checks(results)}"


def _checks(results: Results) -> str:
    checks = results.checks
    if checks is None:
        return (
            "The attack was not checked for masked gradients (`python -m train checks RUN --json RUN/checks.json`), so "
            "robust figures may overstate."
        )
    lines = [
        f"- {check['name']}: {', '.join(f'{name} {100 * value:.2f}' for name, value in check['figures'].items())}. "
        f"{check['verdict']}."
        for check in checks["checks"]
    ]
    intro = (
        f"Checks of the attack on {checks['num_images']:,} images, accuracy in percent; {checks['summary']}. "
        f"Right under every attack at eps = {checks['eps']:g} ({checks['grey_levels']:.3g} grey levels): "
        f"{100 * checks['strongest']:.2f}.\n"
    )
    return "\n".join([intro, *lines])


def _training(recipe: Mapping[str, Any], results: Results) -> str:
    lines = ["## Training", "", "| field | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in recipe.items() if name != "name"]
    if results.training is not None:
        training = results.training
        lines += [f"| steps | {training['steps']} |", f"| seconds | {training['seconds']} |"]
        lines += [f"| {name} | {value} |" for name, value in training["hardware"].items()]
        lines += [f"| {name} | {value} |" for name, value in training["versions"].items()]
    return "\n".join(lines)
