"""Mixed images and soft targets for any PyTorch trainer, in the loader: Full Distribution Training, MixUp, CutMix.

    from fdt_pipeline import FDT, FDTLoader

    for images, targets in FDTLoader("shards/train", batch_size=100, mix=FDT()):
        ...

The definition (`definition/`) needs NumPy alone. What needs torch or NVIDIA DALI is imported when it is first asked
for, and says what to install where they are missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fdt_pipeline.definition.crops import RandomResizedCrop, ResizeCrop
from fdt_pipeline.definition.mixing import FDT, CutMix, MixUp, OneOf
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Series, Uniform
from fdt_pipeline.definition.superposition import Augment, Plan, Pool, draw_plan, superpose_images, superpose_targets
from fdt_pipeline.native import fn_module
from fdt_pipeline.native.arguments import mix_argument

if TYPE_CHECKING:
    from fdt_pipeline.loader.loader import FDTLoader
    from fdt_pipeline.loader.memory import load_pool
    from fdt_pipeline.loader.pipeline import fdt_pipeline
    from fdt_pipeline.loader.stats import LoaderStats
    from fdt_pipeline.losses import SparseTargets, sparse_targets
    from fdt_pipeline.native.load import load as load_operators
    from fdt_pipeline.shards import webdataset_files

fn_module.install()  # nvidia.dali.fn.fdt exists from here on; it is built when it is first used

__version__ = "0.1.0"
__all__ = [
    "FDT",
    "Augment",
    "CutMix",
    "FDTLoader",
    "Geometric",
    "Harmonic",
    "LoaderStats",
    "MixUp",
    "OneOf",
    "Plan",
    "Pool",
    "Power",
    "RandomResizedCrop",
    "ResizeCrop",
    "Series",
    "SparseTargets",
    "Uniform",
    "draw_plan",
    "fdt_pipeline",
    "load_operators",
    "load_pool",
    "mix_argument",
    "sparse_targets",
    "superpose_images",
    "superpose_targets",
    "webdataset_files",
]

_NEEDS_DALI = {
    "FDTLoader": "loader.loader",
    "fdt_pipeline": "loader.pipeline",
    "load_operators": "native.load",
    "load_pool": "loader.memory",
}
_NEEDS_TORCH = {
    "LoaderStats": "loader.stats",
    "SparseTargets": "losses",
    "sparse_targets": "losses",
    "webdataset_files": "shards",
}


def __getattr__(name: str) -> Any:
    home = {**_NEEDS_DALI, **_NEEDS_TORCH}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NEEDS_DALI:
        import_module("fdt_pipeline.dali").import_dali()  # first, so that what is missing is named whole
    return getattr(import_module(f"fdt_pipeline.{home}"), "load" if name == "load_operators" else name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
