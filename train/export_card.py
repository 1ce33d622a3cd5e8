"""The model card of an exported run: what it is, how to call it, and its figures with what they do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train.files import RESULTS
from train.robust_accuracy import Robustness, format_table
from train.saved_run import CHECKS, ROBUSTNESS, SavedRun
from train.setup import is_own

SHOWN_CLASSES = 10


def model_card(
    run: SavedRun, config: Mapping[str, Any], results: Mapping[str, Any], num_folded: int, onnx_difference: float
) -> str:
    """Markdown. results: content by file name, None for what was not measured. onnx_difference: of ONNX Runtime's
    logits to PyTorch's, as measured while exporting."""
    recipe, classes, channels, given = (config[name] for name in ("recipe", "classes", "in_channels", "input"))
    height, width = given["size"]
    mean, std = (tuple(given[name]) for name in ("mean", "std"))
    shown = ", ".join(map(str, classes[:SHOWN_CLASSES])) + (", ..." if len(classes) > SHOWN_CLASSES else "")
    methods = methods_of(recipe)
    trained = f"with {' and '.join(methods)}" if methods else "without tensor normalization and FDT"
    folded = f"; {num_folded} sites of tensor normalization are folded into its weights" if num_folded else ""
    opened = "n is open" if is_own(recipe["model"]) else "n, h and w are open"
    return f"""---
library_name: pytorch
tags:
- image-classification
- full-distribution-training
- onnx
---

# {run.name}

`{recipe["model"]}`, trained {trained}, with the weights after epoch {run.epoch}. {len(classes)} classes: {shown}.

## Files

- `model.onnx`: images f32[n {channels} h w], standardized, to logits f32[n {len(classes)}]; {opened}{folded}. ONNX \
Runtime's logits differ from PyTorch's by at most {onnx_difference:.1e}.
- `model.safetensors`: the weights as they were trained, for the lines below.
- `config.json`: recipe, all classes, and the normalization of the input.

## Use

Pixels in 0..255, RGB, {height} x {width} in training:

```python
import numpy as np
import onnxruntime

pixels = np.zeros((1, {channels}, {height}, {width}), np.float32)
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
model = make_model(config["recipe"], {len(classes)}, {channels}, torch.device("cpu"))
model.load_state_dict(load_file("model.safetensors"))
model.eval()
```

## Accuracy

{_accuracy(run, results[RESULTS])}

## Robustness

{_robustness(run, results[ROBUSTNESS])}

{_checks(results[CHECKS])}

## Training

{_training(recipe, results[RESULTS])}
"""


def methods_of(recipe: Mapping[str, Any]) -> list[str]:
    """What is not plain about the training, from the recipe of config.json, this version's or an older one's."""
    methods = ["tensor normalization"] * bool(recipe["tensor_norm"])
    if "mix" not in recipe:
        return methods + ["Full Distribution Training"] * bool(recipe["fdt"]) + ["MixUp"] * bool(recipe.get("mixup"))
    mix = recipe["mix"]
    if mix is None:
        return methods
    choices = [choice for choice, _ in mix["choices"]] if mix["kind"] == "OneOf" else [mix]
    kinds = [choice["kind"] if choice else "whole images" for choice in choices]
    return [*methods, " or ".join("Full Distribution Training" if kind == "FDT" else kind for kind in kinds)]


def _accuracy(run: SavedRun, training: Mapping[str, Any] | None) -> str:
    if training is None or training["final"]["accuracy"] is None:
        return "Not measured: the run had no test shards, or is not finished."
    final, best = training["final"], training["best"]
    here = "final" if run.epoch == final["epoch"] else "best"
    return f"""Test accuracy in percent, one seed. These files hold the {here} weights.

| weights | epoch | accuracy |
| --- | ---: | ---: |
| final | {final["epoch"]} | {100 * final["accuracy"]:.2f} |
| best, chosen on the test set | {best["epoch"]} | {100 * best["accuracy"]:.2f} |"""


def _robustness(run: SavedRun, robustness: Mapping[str, Any] | None) -> str:
    if robustness is None:
        return "Not measured: `python -m train robustness RUN --json RUN/robustness.json` before the export."
    return format_table({run.name: Robustness.from_dict(robustness)}).rstrip()


def _checks(checks: Mapping[str, Any] | None) -> str:
    if checks is None:
        return (
            "The attack was not checked for masked gradients (`python -m train checks RUN --json RUN/checks.json`), so "
            "robust figures may overstate."
        )
    lines = [
        f"Checks of the attack on {checks['num_images']:,} images, accuracy in percent; {checks['summary']}. "
        f"Right under every attack at eps = {checks['eps']:g} ({checks['grey_levels']:.3g} grey levels): "
        f"{100 * checks['strongest']:.2f}.\n"
    ]
    for check in checks["checks"]:
        figures = ", ".join(f"{name} {100 * value:.2f}" for name, value in check["figures"].items())
        lines.append(f"- {check['name']}: {figures}. {check['verdict']}.")
    return "\n".join(lines)


def _training(recipe: Mapping[str, Any], training: Mapping[str, Any] | None) -> str:
    fields = {name: value for name, value in recipe.items() if name != "name"}
    if training is not None:
        fields |= {"steps": training["steps"], "seconds": training["seconds"]}
        fields |= training["hardware"] | training["versions"]
    return "\n".join(
        ["| field | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in fields.items())]
    )
