"""Pools for `fn.fdt.superpose_resident` out of arrays."""

from fdt_pipeline.definition.superposition import Pool
from fdt_pipeline.native.pool import NativePool


def load_arrays(images, labels, num_classes, pad=8, name=None):
    """u8[n h w c] and i64[n] in the host's memory; the pool lives as long as what this returns."""
    pool = NativePool.begin(len(images), images.shape[1:], pad)
    pool.set_images(0, images)
    return pool.finish(Pool(labels, num_classes), name)
