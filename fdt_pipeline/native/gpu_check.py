"""Whether the operators are right on this machine's GPU: their outputs beside the definition in NumPy.

`python -m fdt_pipeline doctor --gpu` runs it. It goes the whole way of a user's pipeline, from DALI to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from fdt_pipeline import dali
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import FDT, Augment, Pool, standardize, superpose_images
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import HOST, NativePool

Batch = tuple[npt.NDArray[Any], npt.NDArray[Any]]
SEED, EPOCH, MEAN, STD = 0x0123456789ABCDEF, 5, 122.0, 256.0
TOLERANCE, HALF_STEP = 2e-6, 2.0**-11  # a half has 11 bits


@dataclass(frozen=True)
class Case:
    """One output is led by each image; one more is padding. labels: each class has as many images, or one at most."""

    num_classes: int
    num_images: int
    shape: tuple[int, int, int]
    augment: Augment
    targets: str = "soft"
    channels: int = 3
    half: bool = False
    channels_last: bool = False


CASES = (
    Case(10, 30, (32, 32, 3), Augment(4), half=True),
    Case(300, 300, (9, 17, 1), Augment(2), "dominant", channels_last=True),  # long sums, of gray images
    Case(2_000, 60, (33, 17, 3), Augment(5, flip=False), "label"),  # most classes are empty
    Case(7, 35, (40, 64, 4), Augment(0), channels=4),
)


def check_operators(device: str = "gpu", device_id: int | None = 0) -> str:
    """What was compared. RuntimeError says what differs; DALI's own errors and NativeUnavailable pass through."""
    dali.import_dali()
    load()
    for case in CASES:
        rng = np.random.default_rng(case.num_images)
        images = rng.integers(0, 256, (case.num_images, *case.shape), np.uint8)
        labels = Pool(np.arange(case.num_images) * 7 % case.num_classes, case.num_classes)
        expected = _definition(case, images, labels)
        for name, operator in (("superpose_resident", _resident), ("superpose", _window)):
            _compare(f"{name} on the {device}", case, operator(case, images, labels, device, device_id), expected)
    return "both operators give the definition's targets, and its images within 2e-6"


def _definition(case: Case, images: npt.NDArray[np.uint8], labels: Pool) -> Batch:
    """Images [n h w channels] in float64, and targets; zeros at the end for padding."""
    fdt = FDT(anchor="epoch", targets="dominant" if case.targets == "dominant" else "soft")
    numbers = np.arange(case.num_images)
    plans = draw_plans(SEED, EPOCH, numbers, labels, fdt, case.augment, numbers)
    sums = np.stack([superpose_images(plans[i], images, case.augment.pad) for i in numbers])
    pixels = standardize(np.broadcast_to(sums, (*sums.shape[:3], case.channels)), [MEAN] * case.channels, STD)
    if case.targets == "label":
        return _padded(pixels), np.append(labels.labels, -1)
    return _padded(pixels), _padded(batch_targets(plans, case.num_classes, fdt.targets))


def _padded(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([batch, np.zeros_like(batch[:1])])


def _resident(case: Case, images: npt.NDArray[np.uint8], labels: Pool, device: str, device_id: int | None) -> Batch:
    number = HOST if device == "cpu" or device_id is None else device_id
    pool = NativePool.begin(len(images), case.shape, case.augment.pad, number)
    pool.set_images(0, images)
    pool.finish(labels)
    fn = import_module("nvidia.dali.fn")
    return _run(
        case, device_id, lambda ids: fn.fdt.superpose_resident(
            ids, pool=pool.name, anchor="index", device=device, **_arguments(case)
        )
    )  # fmt: skip


def _window(case: Case, images: npt.NDArray[np.uint8], labels: Pool, device: str, device_id: int | None) -> Batch:
    fn = import_module("nvidia.dali.fn")

    def graph(ids: Any) -> Any:
        window = fn.external_source(lambda: _padded(images), batch=True)
        classes = fn.external_source(lambda: np.append(labels.labels, 0), batch=True)
        window = window.gpu() if device == "gpu" else window
        return fn.fdt.superpose(
            window, classes, ids, num_classes=case.num_classes, anchor="epoch", device=device, **_arguments(case)
        )

    return _run(case, device_id, graph)


def _arguments(case: Case) -> dict[str, Any]:
    types = import_module("nvidia.dali.types")
    return {
        "plan_seed": SEED,
        "pad": case.augment.pad,
        "flip": case.augment.flip,
        "targets": case.targets,
        "mean": MEAN,
        "std": STD,
        "channels": case.channels,
        "dtype": types.FLOAT16 if case.half else types.FLOAT,
        "output_layout": "HWC" if case.channels_last else "CHW",
    }


def _run(case: Case, device_id: int | None, graph: Callable[[Any], Any]) -> Batch:
    """One batch: images [n h w channels] in float64, and targets."""
    n = case.num_images
    numbers = np.stack([np.full(n + 1, EPOCH), np.append(np.arange(n), -1)], axis=1)

    def outputs() -> tuple[Any, ...]:
        return tuple(graph(import_module("nvidia.dali.fn").external_source(lambda: numbers, batch=True)))

    pipeline_def = import_module("nvidia.dali").pipeline_def
    pipeline = pipeline_def(outputs)(batch_size=n + 1, num_threads=2, device_id=device_id, prefetch_queue_depth=1)
    pipeline.build()
    images, targets = (
        np.array((part.as_cpu() if hasattr(part, "as_cpu") else part).as_array()) for part in pipeline.run()
    )
    return (images if case.channels_last else images.transpose(0, 2, 3, 1)).astype(np.float64), targets


def _compare(name: str, case: Case, got: Batch, expected: Batch) -> None:
    images, targets = (np.asarray(part) for part in expected)
    allowed = TOLERANCE + (HALF_STEP * np.abs(images) if case.half else 0)
    wrong = (
        ~(np.abs(got[0] - images) <= allowed).all(axis=(1, 2, 3)),
        (got[1] != targets).reshape(len(targets), -1).any(1),
    )
    for part, outputs in zip(("image", "target"), wrong, strict=True):
        if outputs.any():
            raise RuntimeError(
                f"{name}: the {part} of output {outputs.argmax()} is not the definition's ({case.num_classes} classes, "
                f"images of {case.shape})"
            )
