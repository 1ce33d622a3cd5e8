"""Pools for `fn.fdt.superpose_resident` out of arrays, and what outputs must be by the definition."""

import numpy as np

from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import Pool, standardize, superpose_images
from fdt_pipeline.native.pool import NativePool


def load_arrays(images, labels, num_classes, pad=8, name=None):
    """u8[n h w c] and i64[n] in the host's memory; the pool lives as long as what this returns."""
    pool = NativePool.begin(len(images), images.shape[1:], pad)
    pool.set_images(0, images)
    return pool.finish(Pool(labels, num_classes), name)


def defined_outputs(pixels, labels, draw, mean, std=256.0, targets=None):
    """By the definition: images f64[n h w channels], one channel for each mean, and targets (None: of draw)."""
    size = pixels.shape[1:3]
    plans = draw_plans(draw.seed, draw.epoch, draw.indices, labels, draw.mix, draw.augment, draw.leaders, size)
    sums = [superpose_images(plans[i], pixels, draw.augment.pad) for i in range(len(plans))]
    images = standardize(np.broadcast_to(np.stack(sums), (*np.shape(sums)[:3], len(mean))), mean, std)
    if targets == "label":
        return images, batch_targets(plans, labels.num_classes, "dominant").argmax(axis=1)
    return images, batch_targets(plans, labels.num_classes, targets or draw.mix.targets)
