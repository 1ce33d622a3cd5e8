"""Whether the operators are right on this machine's GPU: their outputs beside the definition in NumPy.

`fdt-pipeline doctor --gpu` runs it, all the way from DALI to the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from fdt_pipeline import dali
from fdt_pipeline.definition.mixing import FDT
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import Augment, Pool, standardize, superpose_images
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import HOST, U8, NativePool

Array = npt.NDArray[Any]
SEED, EPOCH, MEAN, STD = 0x0123456789ABCDEF, 5, 122.0, 256.0
TOLERANCE, HALF_STEP = 2e-6, 2.0**-11  # a half has 11 bits


@dataclass(frozen=True)
class Case:
    """Each image leads one output."""

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
        images = np.random.default_rng(0).integers(0, 256, (case.num_images, *case.shape), np.uint8)
        labels = Pool(np.arange(case.num_images) * 7 % case.num_classes, case.num_classes)
        resident, window = _outputs(case, images, labels, device, device_id)
        expected = _definition(case, images, labels)
        _compare(f"superpose_resident on the {device}", case, resident, expected)
        _compare(f"superpose on the {device}", case, window, expected)
    return "both operators give the definition's targets, and its images within 2e-6"


def _outputs(case: Case, images: U8, labels: Pool, device: str, device_id: int | None) -> list[list[Array]]:
    """[images, targets] of one batch by each operator."""
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    pool = NativePool.begin(len(images), case.shape, case.augment.pad, HOST if device_id is None else device_id)
    pool.set_images(0, images)
    pool.finish(labels)
    n = case.num_images
    numbers = np.stack([np.full(n, EPOCH), np.arange(n)], axis=1)
    arguments = {
        "plan_seed": SEED,
        "pad": case.augment.pad,
        "flip": case.augment.flip,
        "targets": case.targets,
        "mean": MEAN,
        "std": STD,
        "channels": case.channels,
        "dtype": types.FLOAT16 if case.half else types.FLOAT,
        "output_layout": "HWC" if case.channels_last else "CHW",
        "device": device,
    }

    def fed(batch: Array) -> Any:
        return fn.external_source(lambda: batch, batch=True)

    def graph() -> tuple[Any, ...]:
        ids, u8, classes = fed(numbers), fed(images), fed(labels.labels)
        u8 = u8.gpu() if device == "gpu" else u8
        resident = fn.fdt.superpose_resident(ids, pool=pool.name, anchor="index", **arguments)
        window = fn.fdt.superpose(u8, classes, ids, num_classes=case.num_classes, anchor="epoch", **arguments)
        return (*resident, *window)

    pipeline_def = import_module("nvidia.dali").pipeline_def
    pipeline = pipeline_def(graph)(batch_size=n, num_threads=2, device_id=device_id, prefetch_queue_depth=1)
    pipeline.build()
    found = [np.array((o.as_cpu() if device == "gpu" else o).as_array()) for o in pipeline.run()]
    return [found[:2], found[2:]]


def _definition(case: Case, images: U8, labels: Pool) -> list[Array]:
    """[images in float64, targets]."""
    fdt = FDT(anchor="epoch", targets="dominant" if case.targets == "dominant" else "soft")
    numbers = np.arange(case.num_images)
    plans = draw_plans(SEED, EPOCH, numbers, labels, fdt, case.augment, numbers)
    sums = np.stack([superpose_images(plans[i], images, case.augment.pad) for i in range(len(plans))])
    pixels = standardize(np.broadcast_to(sums, (*sums.shape[:3], case.channels)), [MEAN] * case.channels, STD)
    pixels = pixels if case.channels_last else pixels.transpose(0, 3, 1, 2)
    if case.targets == "label":
        return [pixels, labels.labels]
    return [pixels, batch_targets(plans, case.num_classes, fdt.targets)]


def _compare(name: str, case: Case, got: list[Array], expected: list[Array]) -> None:
    images, targets = expected
    allowed = TOLERANCE + (HALF_STEP * np.abs(images) if case.half else 0)
    right = {"image": np.abs(got[0].astype(np.float64) - images) <= allowed, "target": got[1] == targets}
    for part, elements in right.items():
        wrong = ~elements.reshape(len(elements), -1).all(axis=1)
        if wrong.any():
            raise RuntimeError(
                f"{name}: the {part} of output {wrong.argmax()} is not the definition's ({case.num_classes} classes, "
                f"images of {case.shape})"
            )
