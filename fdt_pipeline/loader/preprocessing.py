"""A user's function of DALI nodes, which works on images after they are decoded and before they are mixed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fdt_pipeline.dali import import_dali
from fdt_pipeline.loader.decoding import NUM_RANDOM, Preprocess, preprocess_name, takes_random
from fdt_pipeline.loader.running import gist

_dali = import_dali()
from nvidia.dali import pipeline_def  # noqa: E402
from nvidia.dali.data_node import DataNode  # noqa: E402

fn: Any = _dali.fn  # its operators are made at run time
types: Any = _dali.types


def check_preprocess(preprocess: Preprocess, shape: tuple[int, int, int], gpu: int | None = None) -> None:
    """Try it on two images of this shape, on the GPU of this number or on the CPU. ValueError if it fails, or gives
    anything else than images of the same shape in uint8."""
    name = preprocess_name(preprocess)
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    options = {"batch_size": 2, "num_threads": 1, "device_id": gpu, "exec_async": False, "exec_pipelined": False}
    fed = {"images": images}
    if takes_random(preprocess):
        fed["random"] = np.repeat(np.array([[0], [1 - 2**-24]], np.float32), NUM_RANDOM, axis=1)
    try:
        more = conditionals(preprocess)
        pipeline = _trial(preprocess, gpu is not None, **options, **more, prefetch_queue_depth=1)
        pipeline.build()
        for argument, values in fed.items():
            _feed(pipeline, argument, values)
        [made] = pipeline.run()
    except Exception as error:  # the user's own, or DALI's
        raise ValueError(f"preprocess={name} fails on images of {_times(shape)}: {_reason(error)}") from error
    for number in range(2):
        found = made[number]
        check_preprocessed(name, found.dtype, tuple(found.shape()), shape)


def _reason(error: Exception) -> str:
    """In one line. DALI's AutoGraph puts the lines of the user's code before an error of theirs."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return gist(error) if isinstance(error, RuntimeError) else lines[-1].strip()


def _feed(pipeline: Any, argument: str, values: np.ndarray) -> None:
    try:
        pipeline.feed_input(argument, values)
    except (RuntimeError, KeyError):  # DALI leaves out what no output depends on
        raise ValueError(f"what it gives does not depend on {argument}: take no argument that is not used") from None


def check_preprocessed(name: str, dtype: Any, found: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    """ValueError unless this DALI type and shape of an image are what they were before `preprocess`."""
    if dtype != types.UINT8:
        raise ValueError(
            f"preprocess={name} must give uint8, as it gets, but gives {str(dtype).rpartition('.')[2]}: let its last "
            "operator have dtype=types.UINT8, or end with fn.cast_like(made, images)"
        )
    if found != shape:
        raise ValueError(
            f"preprocess={name} must give images of the shape that it gets, {_times(shape)}, but gives {_times(found)}"
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def conditionals(preprocess: Preprocess | None) -> dict[str, bool]:
    """Arguments of a `@pipeline_def` function that calls it: DALI's `rand_augment` and its like have `if`s of nodes."""
    return {"enable_conditionals": True} if preprocess else {}


@pipeline_def
def _trial(preprocess: Preprocess, on_gpu: bool) -> Any:
    images = fn.external_source(name="images", batch=True, dtype=types.UINT8, ndim=3, layout="HWC")
    random = fn.external_source(name="random", batch=True, dtype=types.FLOAT, ndim=1)
    return preprocessed(images.gpu() if on_gpu else images, preprocess, random if takes_random(preprocess) else None)


def preprocessed(images: Any, preprocess: Preprocess, random: Any) -> Any:
    """Images u8[h w c], of the same shape before and after; random f32[16], or None where it takes none."""
    made = preprocess(images) if random is None else preprocess(images, random)
    if not isinstance(made, DataNode):
        raise ValueError(f"it must give one DALI node, the images, but gives {made!r}")
    return made
