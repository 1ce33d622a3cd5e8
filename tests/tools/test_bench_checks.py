"""The honest pass, and every planted cheat is refused by name with its reason."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from fdt_pipeline.shards import load_shards, write_shards
from fdt_pipeline.sources import ArraySource
from tests import bench_contenders
from tests.bench_contenders import box_ends, contender, mixed_batch, mixup_batch
from tools.bench.checks import check, take_epoch
from tools.bench.contenders import OwnContender
from tools.bench.laws import check_law
from tools.bench.race import Options
from tools.bench.subsets import CODES, PER_CODE, levels, write_check_sets
from tools.bench.task import Entry, RefusedError

pytestmark = pytest.mark.soak

NUM_CLASSES = 6
REPEATED, WRONG_LABEL = "more often than once an epoch", "a label that is not theirs"
WRONG_SUM = "are not what their targets say"
HONEST = {
    "whole": bench_contenders.whole,
    "generated": bench_contenders.generated,
    "one-hot": contender(change=lambda loader, images, labels: (images, loader.one_hot(labels))),
    "mixed": bench_contenders.mixed,
    "mixup": contender("mixup"),
    "cutmix": contender("cutmix"),
}


def without_the_last_class(loader, images, targets):
    """Half of the weight of each target is its own."""
    targets[:, 0] += targets[:, -1]
    targets[:, -1] = 0
    return images, targets


CHEATS = {
    "the same few": (contender(order=lambda rng, n: np.arange(n) % 20), REPEATED),
    "with replacement": (contender(order=lambda rng, n: rng.integers(0, n, n)), REPEATED),
    "half of the epoch": (bench_contenders.half_of_the_epoch, "epoch 0 has 300 images, expected"),
    "endless": (contender(order=lambda rng, n: np.tile(rng.permutation(n), 3)), "or more, expected the set's 600"),
    "not shuffled": (contender(order=lambda rng, n: np.arange(n)), "it does not shuffle"),
    "others' labels": (contender(change=lambda loader, images, labels: (images, labels.roll(1))), WRONG_LABEL),
    "8 bits": (contender(change=lambda loader, images, *labels: (images.to(torch.uint8), *labels)), "must be float32"),
    # By half a grey level.
    "brighter": (contender(change=lambda loader, images, labels: (images + 0.002, labels)), "are not in the set"),
    "half sums": (contender("fdt", change=lambda loader, images, targets: (images, targets / 2)), "sum to 1"),
    "others' sums": (contender("fdt", change=lambda loader, images, targets: (images, targets.roll(1, 0))), WRONG_SUM),
    "always two": (
        contender("fdt", batch=lambda loader, rows: mixed_batch(loader, rows, draw_k=lambda low, high: 2)),
        "number of classes in a sum must be uniform",
    ),
    "no last class": (contender("fdt", change=without_the_last_class), "class [05] has a weight of"),
    "hardly mixed": (contender("mixup", batch=partial(mixup_batch, weight=0.97)), "weights must have the law of MixUp"),
    "sums for boxes": (contender("cutmix", batch=mixup_batch), "pixels [0-9.]+ from what they may be"),
    "others' boxes": (
        contender("cutmix", change=lambda loader, images, targets: (images, targets.roll(1, 0))),
        WRONG_SUM,
    ),
    "one sum a batch": (
        contender("fdt", change=lambda loader, *batch: tuple(part[:1].expand_as(part) for part in batch)),
        "outputs differ",
    ),
}


def made_task(folder, images, num_classes, encoding="raw"):
    source = ArraySource(images, np.arange(len(images)) % num_classes)
    write_shards(source, folder / "shards", encoding, samples_per_shard=200)
    return Options(folder / "shards", (), 32, 2, 6, 1.0, folder / "work").task()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """600 images of noise, of 6 classes."""
    images = np.random.default_rng(0).integers(0, 256, (600, 12, 10, 3), np.uint8)
    return made_task(tmp_path_factory.mktemp("race"), images, NUM_CLASSES)


@pytest.fixture(scope="module")
def jpeg_task(tmp_path_factory):
    """400 smooth images of 4 classes, as JPEG."""
    coarse = torch.rand(400, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear").permute(0, 2, 3, 1)
    return made_task(tmp_path_factory.mktemp("jpeg"), smooth.to(torch.uint8).numpy(), 4, "jpg")


def refused(reason):
    return pytest.raises(RefusedError, match=reason) if reason else nullcontext()


def checked(function, task):
    entry = Entry("", getattr(function, "mixing", "none"), lambda task: OwnContender(function, task))
    return check(entry, task, write_check_sets(task))


@pytest.mark.parametrize("name", HONEST)
def test_the_honest_pass(task, name):
    assert checked(HONEST[name], task)["images"] == 600


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused_with_its_reason(task, name):
    function, reason = CHEATS[name]
    with refused(reason):
        checked(function, task)


@pytest.mark.parametrize(
    ("function", "changed", "reason"),
    [
        (HONEST["whole"], lambda images, rng: images + rng.uniform(-1.5, 1.5, images.shape), None),
        (HONEST["mixed"], lambda images, rng: images + rng.uniform(-1.5, 1.5, images.shape), None),
        (HONEST["whole"], lambda images, rng: 255 - images, "are not in the set"),
        (CHEATS["the same few"][0], lambda images, rng: images, REPEATED),
        (CHEATS["others' labels"][0], lambda images, rng: images, WRONG_LABEL),
        (CHEATS["others' sums"][0], lambda images, rng: images, WRONG_SUM),
    ],
)
def test_jpegs_are_told_apart_though_decoders_give_other_pixels(jpeg_task, monkeypatch, function, changed, reason):
    def augmented(self, rows):
        return np.clip(changed(self.images[rows], self.rng), 0, 255)

    monkeypatch.setattr(bench_contenders.InMemory, "augmented", augmented)
    with refused(reason):
        checked(function, jpeg_task)


def test_check_sets_are_some_of_the_sets_images_and_flat_ones_whose_colours_are_their_classes(task, monkeypatch):
    """As many images of each class; no two colours are alike in any channel. They are written once."""
    monkeypatch.setattr("tools.bench.subsets.SAMPLES", 60)
    small = Options(task.shards, (), 32, 2, 6, 1.0, task.work / "small").task()
    sets = write_check_sets(small)
    images, labels, _ = load_shards(sets.sample)
    known = {image.tobytes(): label for image, label in zip(*load_shards(task.shards)[:2], strict=True)}
    assert np.bincount(labels).tolist() == [10] * NUM_CLASSES
    assert [known[image.tobytes()] for image in images] == labels.tolist()
    assert len({image.tobytes() for image in images}) == 60
    images, labels, _ = load_shards(sets.coded)
    assert images.shape == (CODES * PER_CODE, 12, 10, 3)
    assert (images == levels(3)[labels][:, None, None, :]).all()
    assert all(len(set(channel)) == CODES for channel in levels(3).T.tolist())
    before = (sets.sample / "manifest.json").stat().st_mtime_ns
    assert write_check_sets(small) == sets
    assert (sets.sample / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ("neither", r"\(images, targets\), got str"),
        ((np.zeros(3), torch.zeros(3)), "images must be a torch.Tensor, got ndarray"),
        ((torch.zeros(4, 3, 10, 12), torch.zeros(4).long()), r"float32 \[n 3 12 10\], got"),
        ((torch.zeros(4, 3, 12, 10), torch.zeros(3).long()), "4 images and 3 targets"),
        ((torch.zeros(40, 3, 12, 10), torch.zeros(40).long()), "1 to 32 images, got 40"),
        ((torch.full((4, 3, 12, 10), torch.nan), torch.zeros(4).long()), "must be finite"),
        ((torch.zeros(4, 3, 12, 10), torch.zeros(4).int()), "labels must be int64"),
        ((torch.zeros(4, 3, 12, 10), torch.full((4,), 6)), "labels must be in 0..5, got 6"),
        ((torch.zeros(4, 3, 12, 10), torch.zeros(4, 5)), r"targets must be float32 \[n 6\]"),
    ],
)
def test_a_batch_of_another_form_is_refused(task, batch, reason):
    class Giving:
        def epoch(self, number):
            yield batch

    with refused(reason):
        take_epoch(Giving(), task, "none", 0, lambda pixels: [])


def test_pairs_of_a_set_of_one_class_have_no_weights_to_check():
    check_law(list(range(64)), [np.ones((64, 1), np.float32)], "mixup", [64], (32, 32))


def even(k):
    return np.full(k, 1 / k)


def pair(weight):
    return np.array([weight, 1 - weight])


def box(rng, size=(32, 32)):
    return pair(
        np.prod([(end - begin) / length for (begin, end), length in zip(box_ends(rng, size), size, strict=True)])
    )


@pytest.mark.parametrize(
    ("mixing", "draw", "reason"),
    [
        ("fdt", lambda rng: even(rng.integers(1, 21)), None),
        ("fdt", lambda rng: even(rng.integers(1, 18)), r"uniform on 1\.\.D"),
        ("fdt of at most 4", lambda rng: even(rng.integers(1, 5)), None),
        ("fdt of at most 4", lambda rng: even(rng.integers(1, 4)), r"uniform on 1\.\.D"),
        ("fdt in the batch", lambda rng: even(rng.integers(1, 21)), None),
        ("fdt in the batch", lambda rng: even(rng.integers(1, 6)), r"uniform on 1\.\.D"),
        ("mixup", lambda rng: pair(rng.random()), None),
        ("mixup", lambda rng: even(3), "MixUp mixes two images, got a target with 3"),
        ("mixup", lambda rng: even(1 if rng.random() < 0.9 else 2), "outputs mix two classes"),
        ("mixup", lambda rng: pair(rng.beta(0.5, 0.5)), r"law of MixUp\(.*\), expected a mean of 0.75., got 0.8"),
        ("mixup", box, "law of MixUp"),
        ("cutmix", box, None),
        ("cutmix", lambda rng: pair(rng.random()), "law of CutMix"),
        ("cutmix", lambda rng: even(3), "CutMix mixes two images"),
    ],
)
def test_each_mixing_is_held_to_its_law(mixing, draw, reason):
    """FDT in the batch to the classes that the batch has; FDT to all 20 of the set. Weights go to random classes."""
    rng, drawn = np.random.default_rng(0), np.zeros((40, 64, 20), np.float32)
    for target in drawn.reshape(-1, 20):
        weights = draw(rng)
        target[rng.permutation(20)[: len(weights)]] = weights
    with refused(reason):
        mixing, _, most = mixing.partition(" of at most ")
        check_law(list(range(40 * 64)), list(drawn), mixing, [10] * 20, (32, 32), int(most) if most else None)
