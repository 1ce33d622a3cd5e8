"""Contenders, each the way its own users would write it; a library is imported when its contender is set up."""

from __future__ import annotations

from . import (
    dali,
    data_loader,
    data_loader_fdt,
    ffcv_loader,
    gpu_loader,
    litdata_loader,
    mosaic_streaming,
    ours,
    timm_loader,
    webdataset_loader,
)

_ROOMS = (
    ours,
    dali,
    data_loader,
    data_loader_fdt,
    timm_loader,
    webdataset_loader,
    litdata_loader,
    mosaic_streaming,
    ffcv_loader,
    gpu_loader,
)
ENTRIES = tuple(entry for room in _ROOMS for entry in room.ENTRIES)
