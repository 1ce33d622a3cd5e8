"""Full Distribution Training (FDT) in the data loader: superposed images and soft targets for any PyTorch trainer.

    from fdt_pipeline import FDT, FDTLoader

    for images, targets in FDTLoader("shards/train", batch_size=100, mix=FDT()):
        ...

The definition (`superposition`, `series`, `philox`) needs NumPy alone. What needs torch and NVIDIA DALI is imported
when it is first asked for, and says what to install where they are missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Series, Uniform
from fdt_pipeline.definition.superposition import (
    FDT,
    Augment,
    Plan,
    Pool,
    draw_plan,
    superpose_images,
    superpose_targets,
)
from fdt_pipeline.native import fn_module
from fdt_pipeline.native.arguments import series_argument

if TYPE_CHECKING:
    from fdt_pipeline.loader.loader import FDTLoader
    from fdt_pipeline.loader.pipeline import fdt_pipeline
    from fdt_pipeline.loader.stats import LoaderStats
    from fdt_pipeline.loader.targets import SparseTargets
    from fdt_pipeline.shards import webdataset_files

fn_module.install()  # nvidia.dali.fn.fdt exists from here on; it is built when it is first used

__version__ = "0.1.0"
__all__ = [
    "FDT",
    "Augment",
    "FDTLoader",
    "Geometric",
    "Harmonic",
    "LoaderStats",
    "Plan",
    "Pool",
    "Power",
    "Series",
    "SparseTargets",
    "Uniform",
    "draw_plan",
    "fdt_pipeline",
    "load_operators",
    "series_argument",
    "superpose_images",
    "superpose_targets",
    "webdataset_files",
]


def __getattr__(name: str) -> Any:
    if name == "FDTLoader":
        import_module("fdt_pipeline.dali").import_dali()  # first, so that what is missing is named whole
        return import_module("fdt_pipeline.loader.loader").FDTLoader
    if name == "fdt_pipeline":
        import_module("fdt_pipeline.dali").import_dali()
        return import_module("fdt_pipeline.loader.pipeline").fdt_pipeline
    if name == "LoaderStats":
        return import_module("fdt_pipeline.loader.stats").LoaderStats
    if name == "SparseTargets":
        return import_module("fdt_pipeline.loader.targets").SparseTargets
    if name == "webdataset_files":
        return import_module("fdt_pipeline.shards").webdataset_files
    if name == "load_operators":
        import_module("fdt_pipeline.dali").import_dali()
        return import_module("fdt_pipeline.native.load").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
