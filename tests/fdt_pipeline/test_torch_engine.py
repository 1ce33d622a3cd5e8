import numpy as np
import pytest
import torch

from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.definition.superposition import FDT, Augment, Pool, standardize, superpose_images
from fdt_pipeline.loader.options import Output
from fdt_pipeline.loader.torch_engine import ImagePool, superpose

RGB = Output(mean=(122.0, 117.0, 104.0), std=(256.0,) * 3, channels=3)


def random_pool(n, shape, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), np.uint8), Pool(rng.integers(0, classes, n), classes)


@pytest.mark.parametrize(
    ("shape", "classes", "augment"),
    [
        ((32, 32, 3), 10, Augment()),
        ((32, 32, 3), 100, Augment()),
        ((33, 17, 3), 10, Augment(pad=5)),
        ((28, 28, 1), 10, Augment(pad=0)),
        ((8, 9, 3), 1000, Augment(pad=20, flip=False)),
    ],
)
def test_images_are_within_2e_6_of_the_float64_sums(shape, classes, augment):
    images, pool = random_pool(1200, shape, classes)
    output = RGB if shape[2] == 3 else Output((117.0,), (256.0,), 1)
    plans = draw_plans(1, 0, np.arange(48), pool, FDT(), augment)
    batch = superpose(ImagePool(torch.from_numpy(images), augment.pad), plans, output)
    for i in range(len(plans)):
        expected = standardize(superpose_images(plans[i], images, augment.pad), output.mean, output.std)
        assert np.abs(batch[i].numpy() - expected.transpose(2, 0, 1)).max() < 2e-6


def test_result_does_not_depend_on_how_a_batch_is_cut():
    images, pool = random_pool(300, (64, 64, 3), 30)  # 12 kB an image: several chunks a batch
    resident = ImagePool(torch.from_numpy(images), 4)
    whole = superpose(resident, draw_plans(3, 0, np.arange(64), pool, FDT(), Augment()), RGB)
    for i in (0, 13, 63):
        assert torch.equal(superpose(resident, draw_plans(3, 0, [i], pool, FDT(), Augment()), RGB)[0], whole[i])


def test_the_last_image_of_the_pool_can_be_shifted_to_its_farthest_corner():
    images, _ = random_pool(3, (5, 6, 2), 2)
    pool = ImagePool(torch.from_numpy(images), 2)
    crop = pool.crops(torch.tensor([(2 * pool.height + 4) * pool.width + 4])).reshape(5, 6, 2).numpy()
    assert np.array_equal(crop[:3, :4], images[2, 2:, 2:])
    assert not crop[3:].any()
    assert not crop[:, 4:].any()
