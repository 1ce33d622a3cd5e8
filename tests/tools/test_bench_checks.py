"""The honest pass, and every planted cheat is refused by name with its reason."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from fdt_pipeline.shards import load_shards, write_shards
from fdt_pipeline.sources import ArraySource
from tests import bench_contenders
from tools.bench.checks import check, check_law, take_epoch, to_u8_range
from tools.bench.contenders import find_entry
from tools.bench.race import Options
from tools.bench.subsets import CODES, PER_CODE, levels, write_check_sets
from tools.bench.task import RefusedError

pytestmark = pytest.mark.soak

MODULE = "tests.bench_contenders"
NUM_CLASSES = 6


def options(shards, work, **others):
    return Options(shards, (), 32, 2, 6, 1.0, work, **others)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """600 images of noise, of 6 classes."""
    folder = tmp_path_factory.mktemp("race")
    images = np.random.default_rng(0).integers(0, 256, (600, 12, 10, 3), np.uint8)
    write_shards(ArraySource(images, np.arange(600) % NUM_CLASSES), folder / "shards", samples_per_shard=200)
    return options(folder / "shards", folder / "work").task()


@pytest.fixture(scope="module")
def sets(task):
    return write_check_sets(task)


@pytest.fixture(scope="module")
def jpeg_task(tmp_path_factory):
    """400 smooth images of 4 classes, as JPEG."""
    folder = tmp_path_factory.mktemp("jpeg")
    coarse = torch.rand(400, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear").permute(0, 2, 3, 1)
    write_shards(ArraySource(smooth.to(torch.uint8).numpy(), np.arange(400) % 4), folder / "shards", "jpg")
    return options(folder / "shards", folder / "work").task()


@pytest.mark.parametrize("name", ["whole", "generated", "one_hot", "mixed", "mixup"])
def test_the_honest_pass(task, sets, name):
    assert check(find_entry(f"{MODULE}:{name}"), task, sets)["images"] == 600


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("same_batch", "more often than once an epoch"),
        ("with_replacement", "more often than once an epoch"),
        ("half_of_the_epoch", "epoch 0 has 300 images, expected"),
        ("never_ends", "images or more, expected the set's 600"),
        ("not_shuffled", "it does not shuffle"),
        ("shuffled_labels", "a label that is not theirs"),
        ("eight_bits", "images must be float32"),
        ("brighter", "are not in the set"),
        ("sums_of_a_half", "sum to 1"),
        ("always_two", "number of classes in a sum must be uniform"),
        ("first_classes", "class [05] has a weight of"),
        ("targets_of_others", "are not what their targets say"),
        ("repeated_sums", "outputs differ"),
    ],
)
def test_a_cheat_is_refused_with_its_reason(task, sets, name, reason):
    with pytest.raises(RefusedError, match=reason):
        check(find_entry(f"{MODULE}:{name}"), task, sets)


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("whole", lambda images, rng: images + rng.uniform(-1.5, 1.5, images.shape), None),
        ("mixed", lambda images, rng: images + rng.uniform(-1.5, 1.5, images.shape), None),
        ("whole", lambda images, rng: 255 - images, "are not in the set"),
        ("same_batch", lambda images, rng: images, "more often than once an epoch"),
        ("shuffled_labels", lambda images, rng: images, "a label that is not theirs"),
        ("targets_of_others", lambda images, rng: images, "are not what their targets say"),
    ],
)
def test_jpegs_are_told_apart_though_another_decoder_gives_other_pixels(jpeg_task, monkeypatch, name, changed, reason):
    def augmented(self, rows):
        return np.clip(changed(self.images[rows], self.rng), 0, 255)

    monkeypatch.setattr(bench_contenders.InMemory, "augmented", augmented)
    with pytest.raises(RefusedError, match=reason) if reason else nullcontext():
        check(find_entry(f"{MODULE}:{name}"), jpeg_task, write_check_sets(jpeg_task))


def test_the_sample_has_as_many_images_of_each_class_and_they_are_the_sets(task, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.bench.subsets.SAMPLES", 60)
    small = options(task.shards, tmp_path).task()
    images, labels, _ = load_shards(write_check_sets(small).sample)
    known = {image.tobytes(): label for image, label in zip(*load_shards(task.shards)[:2], strict=True)}
    assert np.bincount(labels).tolist() == [10] * NUM_CLASSES
    assert [known[image.tobytes()] for image in images] == labels.tolist()
    assert len({image.tobytes() for image in images}) == 60


def test_the_coded_set_is_flat_and_no_two_classes_are_alike_in_any_channel(task, sets):
    images, labels, _ = load_shards(sets.coded)
    assert images.shape == (CODES * PER_CODE, 12, 10, 3)
    assert (images == levels(3)[labels][:, None, None, :]).all()
    assert all(len(set(channel)) == CODES for channel in levels(3).T.tolist())


def test_check_sets_are_written_once(task, sets):
    before = (sets.sample / "manifest.json").stat().st_mtime_ns
    assert write_check_sets(task) == sets
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

    with pytest.raises(RefusedError, match=reason):
        take_epoch(Giving(), task, "none", 0, lambda pixels: [])


def law_of(draw, mixing, classes=20, batches=40, size=64):
    """Check batches of targets drawn by `draw(rng)`, an array of weights that are spread over random classes."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(batches):
        targets = np.zeros((size, classes), np.float32)
        for target in targets:
            weights = draw(rng)
            target[rng.permutation(classes)[: len(weights)]] = weights
        drawn.append(targets)
    check_law(list(range(batches * size)), drawn, mixing, [10] * classes)


def even(k):
    return np.full(k, 1 / k)


@pytest.mark.parametrize(
    ("mixing", "draw", "reason"),
    [
        ("fdt", lambda rng: even(rng.integers(1, 21)), None),
        ("fdt", lambda rng: even(rng.integers(1, 18)), r"uniform on 1\.\.D"),
        ("fdt in the batch", lambda rng: even(rng.integers(1, 21)), None),
        ("fdt in the batch", lambda rng: even(rng.integers(1, 6)), r"uniform on 1\.\.D"),
        ("mixup", lambda rng: even(2), None),
        ("mixup", lambda rng: even(3), "MixUp mixes two images, got a target with 3"),
        ("mixup", lambda rng: even(1 if rng.random() < 0.9 else 2), "outputs mix two classes"),
    ],
)
def test_each_mixing_is_held_to_its_law(mixing, draw, reason):
    """FDT in the batch to the classes that the batch has; FDT to all 20 of the set."""
    with pytest.raises(RefusedError, match=reason) if reason else nullcontext():
        law_of(draw, mixing)


def test_pixels_are_recovered_from_standardized_images(task):
    pixels = torch.rand(4, 3, 12, 10) * 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (task.mean, task.std))
    assert torch.allclose(to_u8_range((pixels - mean) / std, task), pixels, atol=1e-4)
