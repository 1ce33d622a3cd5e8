import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.functional import center_crop, resize

from fdt_pipeline import Augment, RandomResizedCrop, ResizeCrop
from fdt_pipeline.definition.crops import draw_crops, middle_regions

IMAGENET = RandomResizedCrop(224)
DRAWS = 4000
# Of photographs, of a mixture of fallbacks and crops (ratio 2.5 and 1 / 2.2), of the fallback alone, and a tiny one.
SIZES = [(375, 500), (640, 427), (200, 500), (440, 200), (10, 1000), (1, 500), (3, 2)]
sides = st.integers(1, 3000)


def crops_of(height, width, crop=IMAGENET, n=DRAWS, seed=5, epoch=2):
    return draw_crops(crop, seed, epoch, np.arange(n), np.full(n, height), np.full(n, width)).astype(np.int64)


def torchvision_crops(height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), n=DRAWS):
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return np.array([TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)])


def measures(crops):
    top, left, height, width = crops.T
    return {"area": height * width, "log ratio": np.log(width / height), "top": top, "left": left}


def are_of_one_law(found, expected):
    """Two-sample tests: all four measures by Kolmogorov and Smirnov, and which whole crops come where these are few."""
    p = [ks_2samp(a, b).pvalue for a, b in zip(measures(found).values(), measures(expected).values(), strict=True)]
    kinds, number = np.unique(np.concatenate([found, expected]), axis=0, return_inverse=True)
    if 1 < len(kinds) <= 50:
        halves = np.split(number.ravel(), [len(found)])
        table = np.array([np.bincount(half, minlength=len(kinds)) for half in halves])
        p.append(chi2_contingency(table[:, table.sum(axis=0) >= 10]).pvalue)
    return min(p) > 0.001


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_random_crops_have_torchvisions_law(height, width):
    assert are_of_one_law(crops_of(height, width), torchvision_crops(height, width))


def test_random_crops_of_another_scale_and_ratio_have_torchvisions_law():
    options = {"scale": (0.3, 0.6), "ratio": (0.5, 3.0)}
    assert are_of_one_law(crops_of(300, 400, RandomResizedCrop(8, **options)), torchvision_crops(300, 400, **options))


@pytest.mark.parametrize("change", [{"scale": (0.12, 1)}, {"ratio": (0.7, 4 / 3)}])
def test_a_slightly_different_law_is_told_from_torchvisions(change):
    assert not are_of_one_law(crops_of(375, 500, RandomResizedCrop(224, **change)), torchvision_crops(375, 500))


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.5, 0.6), (2.5, 3.0)])
@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (2, 90), (90, 2)])
def test_what_never_fits_is_torchvisions_middle(height, width, ratio):
    scale = (0.9, 1.0)
    [expected] = np.unique(torchvision_crops(height, width, scale, ratio, n=20), axis=0)
    assert (crops_of(height, width, RandomResizedCrop(224, scale, ratio), n=20) == expected).all()


@given(sides, sides, st.floats(1e-4, 1), st.floats(1e-4, 1), st.floats(0.01, 100), st.floats(0.01, 100))
def test_every_crop_lies_in_its_image_and_has_a_pixel(height, width, a, b, c, d):
    crop = RandomResizedCrop(224, (min(a, b), max(a, b)), (min(c, d), max(c, d)))
    top, left, high, wide = crops_of(height, width, crop, n=20).T
    assert min(top.min(), left.min(), high.min() - 1, wide.min() - 1) >= 0
    assert (top + high <= height).all()
    assert (left + wide <= width).all()


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), sides, sides), min_size=1, max_size=30), st.randoms())
def test_a_crop_depends_on_its_sample_alone_and_not_on_those_beside_it(samples, random):
    crop, seed, epoch = RandomResizedCrop(32), 2**63 + 1, 7
    alone = [draw_crops(crop, seed, epoch, *np.array([sample]).T)[0].tolist() for sample in samples]
    order = random.sample(range(len(samples)), len(samples))
    together = draw_crops(crop, seed, epoch, *np.array([samples[i] for i in order]).T)
    assert together.tolist() == [alone[i] for i in order]


def test_epochs_seeds_and_samples_have_crops_of_their_own():
    first = crops_of(400, 500)
    for other in (crops_of(400, 500, epoch=3), crops_of(400, 500, seed=6), np.roll(first, 1, axis=0)):
        assert (first == other).all(axis=1).mean() < 0.01


def test_the_crops_of_a_seed_stay_what_they_are():
    assert draw_crops(RandomResizedCrop(224), 1, 2, [0, 1, 99], [375, 20, 500], [500, 900, 333]).tolist() == [
        [32, 179, 326, 310],
        [0, 436, 20, 27],
        [134, 46, 332, 264],
    ]


@given(sides, sides, st.integers(1, 400), st.data())
def test_the_middle_is_where_torchvision_resizes_and_crops(height, width, side, data):
    cut = data.draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    long = side * max(height, width) // min(height, width)
    assume(long * side < 1_000_000)
    # Torchvision crops an image whose pixels are their own coordinates, after "resizing" it to what it is.
    resized = resize(torch.empty(1, height, width), side, interpolation=0).shape[1:]
    rows, columns = torch.meshgrid(*map(torch.arange, resized), indexing="ij")
    shown = center_crop(torch.stack([rows, columns]), cut)
    expected = [*shown[:, 0, 0].tolist(), *(shown[:, -1, -1] - shown[:, 0, 0] + 1).tolist()]
    scale = np.tile([height / resized[0], width / resized[1]], 2)
    np.testing.assert_allclose(middle_regions(ResizeCrop(side, cut), [height], [width])[0] / scale, expected, atol=1e-9)


def test_sizes_are_numbers_or_pairs():
    assert RandomResizedCrop(224) == RandomResizedCrop((224, 224)) == RandomResizedCrop(np.int64(224), scale=[0.08, 1])
    assert RandomResizedCrop((192, 224)).output_size == (192, 224)
    assert ResizeCrop(256, [224, 200]).output_size == (224, 200)
    assert hash(ResizeCrop()) == hash(ResizeCrop(256, (224, 224)))


def test_what_is_left_for_each_constituent_is_the_flip():
    assert RandomResizedCrop(224).augment == Augment(pad=0, flip=True)
    assert RandomResizedCrop(224, flip=False).augment == ResizeCrop().augment == Augment(pad=0, flip=False)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RandomResizedCrop(0), "RandomResizedCrop: size must be 1 pixel or more, a whole number, got 0"),
        (lambda: RandomResizedCrop(22.4), "size must be a whole number or .height, width., got 22.4"),
        (lambda: RandomResizedCrop((3, 4, 5)), "size must be a whole number or"),
        (lambda: RandomResizedCrop((224, -1)), "width of RandomResizedCrop: size must be 1 pixel or more"),
        (lambda: RandomResizedCrop(8, scale=(0, 1)), "scale must be .least, most. with 0 < least <= most <= 1, got"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 1.5)), "scale must be"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.2)), "scale must be"),
        (lambda: RandomResizedCrop(8, scale=0.5), "scale must be .least, most., got 0.5"),
        (lambda: RandomResizedCrop(8, ratio=("a", 1)), "ratio must be two numbers"),
        (lambda: RandomResizedCrop(8, ratio=(0.5, float("nan"))), "ratio must be"),
        (lambda: RandomResizedCrop(8, ratio=(0.5, float("inf"))), "ratio must be"),
        (lambda: RandomResizedCrop(8, flip=0.5), "flip must be True or False, got 0.5"),
        (lambda: ResizeCrop(200, 224), "crop must be at most resize, .* got crop=.224, 224. and resize=200"),
        (lambda: ResizeCrop((256, 256), 224), "ResizeCrop: resize must be 1 pixel or more, a whole number, got"),
        (lambda: ResizeCrop(256, (224, 300)), "crop must be at most resize"),
    ],
)
def test_options_that_make_no_crop_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
