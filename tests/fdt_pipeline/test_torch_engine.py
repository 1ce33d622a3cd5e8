"""The torch engine's sums against the definition's."""

import numpy as np
import pytest
import torch

from fdt_pipeline.definition.mixing import FDT
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.definition.superposition import Augment, Pool, standardize, superpose_images
from fdt_pipeline.loader.options import Output
from fdt_pipeline.loader.torch_engine import ImagePool, superpose

RGB = Output(mean=(122.0, 117.0, 104.0), std=(256.0,) * 3, channels=3)


@pytest.mark.parametrize(
    ("n", "shape", "classes", "augment"),
    [
        (1200, (32, 32, 3), 10, Augment()),
        (1200, (32, 32, 3), 100, Augment()),
        (300, (64, 64, 3), 30, Augment()),  # 12 kB an image: several chunks a batch
        (1200, (33, 17, 3), 10, Augment(pad=5)),
        (1200, (28, 28, 1), 10, Augment(pad=0)),
        (1200, (8, 9, 3), 1000, Augment(pad=20, flip=False)),
        (2, (5, 6, 3), 2, Augment(pad=1)),  # the pool's last image is shifted to its farthest corner, too
    ],
)
def test_images_are_within_2e_6_of_the_float64_sums(n, shape, classes, augment):
    rng = np.random.default_rng(0)
    images, pool = rng.integers(0, 256, (n, *shape), np.uint8), Pool(np.arange(n) % classes, classes)
    output = RGB if shape[2] == 3 else Output((117.0,), (256.0,), 1)
    plans = draw_plans(1, 0, np.arange(48), pool, FDT(), augment)
    batch = superpose(ImagePool(torch.from_numpy(images), augment.pad), plans, output)
    for i in range(len(plans)):
        expected = standardize(superpose_images(plans[i], images, augment.pad), output.mean, output.std)
        assert np.abs(batch[i].numpy() - expected.transpose(2, 0, 1)).max() < 2e-6
