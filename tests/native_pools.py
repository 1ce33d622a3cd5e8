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
    """By the definition: images f64[n h w channels], one channel repeated for each mean, and targets (None: of draw).

    Weights are the series' own, in float64: plans of a batch hold float32 ones.
    """
    plans = draw_plans(draw.seed, draw.epoch, draw.indices, labels, draw.fdt, draw.augment, draw.leaders)
    sums = []
    for plan in (plans[i] for i in range(len(plans))):
        weights = draw.fdt.series.weights(len(plan.images))
        plan = type(plan)(plan.images, plan.classes, weights, plan.dy, plan.dx, plan.flip)
        sums.append(superpose_images(plan, pixels, draw.augment.pad))
    images = standardize(np.broadcast_to(np.stack(sums), (*np.shape(sums)[:3], len(mean))), mean, std)
    if targets == "label":
        return images, plans.classes[plans.offsets[:-1]]
    return images, batch_targets(plans, labels.num_classes, targets or draw.fdt.targets)
