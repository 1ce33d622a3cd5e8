"""What the batches of a loader hold, against the definition, in both modes and with both engines."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, MixUp, OneOf, Power
from fdt_pipeline.definition.mixing import is_led
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import (
    Pool,
    draw_plan,
    epoch_order,
    standardize,
    superpose_images,
    superpose_targets,
)
from fdt_pipeline.shards import load_shards, write_shards
from fdt_pipeline.sources import open_source
from tests.loading import MODES, PIXELS, assert_same, joined, numbers_of, of_partners
from tests.numbered import LABELS, NUM_SAMPLES, image_numbers, numbered_images, ring_slots

pytestmark = pytest.mark.dali


@pytest.fixture(params=["native", "torch"], autouse=True)
def engine(request, monkeypatch):
    """Every test runs with both."""
    monkeypatch.setitem(FDTLoader.__init__.__kwdefaults__, "engine", request.param)
    return request.param


SEVERAL = OneOf([(MixUp(0.8), 0.3), (CutMix(1.0), 0.3), (FDT(label_smoothing=0.2), 0.3), (None, 0.1)])


@pytest.mark.parametrize("augment", [None, Augment(pad=2)])
@pytest.mark.parametrize(
    "mix",
    [
        FDT(),
        FDT(min_images=2, max_images=3, series=Power(2), anchor="epoch"),
        FDT(probability=0.5, targets="dominant"),
        FDT(max_images=9, unique_classes=False, label_smoothing=0.1),
        MixUp(0.4, partners="set"),
        MixUp(1.0, unique_classes=True, targets="dominant", anchor="random"),
        CutMix(1.0, label_smoothing=0.1),
        CutMix(0.3, probability=0.5, unique_classes=True),
        SEVERAL,
    ],
)
def test_resident_outputs_are_the_definitions(numbered_shards, mix, augment):
    images, labels, _ = load_shards(numbered_shards)
    pool, epoch = Pool(labels, 7), 4
    loader = FDTLoader(numbered_shards, 32, mix=mix, augment=augment, mode="resident", seed=9)
    loader.set_epoch(epoch)
    mixed, targets = joined(loader)
    order = epoch_order(9, epoch, NUM_SAMPLES)
    assert mixed.shape == (NUM_SAMPLES, 3, 6, 5)
    for i in range(0, NUM_SAMPLES, 7):
        leader = int(order[i]) if is_led(mix) else None
        plan = draw_plan(9, epoch, i, pool, mix, augment or Augment(0, False), leader, (6, 5))
        expected = standardize(superpose_images(plan, images, augment.pad if augment else 0), (122, 117, 104), 256)
        assert np.abs(mixed[i].numpy() - expected.transpose(2, 0, 1)).max() < 2e-6
        assert np.array_equal(targets[i].numpy(), superpose_targets(plan, 7, mix.targets))


each_mix = pytest.mark.parametrize(
    "mix",
    [
        FDT(targets="dominant", max_images=2),
        FDT(anchor="epoch", min_images=2, max_images=2),
        MixUp(0.4, label_smoothing=0.1),
        CutMix(1.0),
        OneOf([(MixUp(0.8), 0.5), (CutMix(1.0), 0.3), (None, 0.2)]),
    ],
)


@each_mix
def test_streaming_outputs_are_the_definitions_drawn_from_the_ring(numbered_shards, mix):
    check_streaming(numbered_shards, of_partners(mix, "ring"), 58)


@each_mix
def test_streaming_outputs_are_the_definitions_drawn_from_their_batch(numbered_shards, mix):
    check_streaming(numbered_shards, of_partners(mix, "batch"), None)


def check_streaming(shards, mix, ring):
    """The order of the stream is read off plain training, which walks the same one."""
    shared = {"mode": "streaming", "seed": 5, "augment": None, "ring": ring, **PIXELS}
    stream = numbers_of(list(FDTLoader(shards, 20, mix=FDT(max_images=1, anchor="epoch"), **shared)))
    mixed, targets = joined(FDTLoader(shards, 20, mix=mix, **shared))
    assert sorted(stream) == list(range(NUM_SAMPLES))
    images = numbered_images()
    for start in range(0, NUM_SAMPLES, 20):
        indices = np.arange(start, min(start + 20, NUM_SAMPLES))
        slots, places = ring_slots(start, len(indices), ring) if ring else (indices, indices - start)
        there = stream[slots]
        leaders = places if is_led(mix) else None
        plans = draw_plans(5, 0, indices, Pool(LABELS[there], 7), mix, leaders=leaders, size=(6, 5))
        assert np.array_equal(targets[indices].numpy(), batch_targets(plans, 7, mix.targets))
        for i in range(0, len(indices), 5):
            expected = superpose_images(plans[i], images[there]).transpose(2, 0, 1)
            assert np.abs(mixed[start + i].numpy() - expected).max() < 2e-6 * 256


@pytest.mark.parametrize("mode", MODES)
def test_plain_training_shows_every_sample_once_an_epoch_in_a_new_order(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mix=None, augment=None, mode=mode, seed=2, **PIXELS)
    orders = []
    for _ in range(3):
        images, targets = joined(loader)
        numbers = image_numbers(images)
        assert sorted(numbers) == list(range(NUM_SAMPLES))
        assert torch.equal(targets, torch.nn.functional.one_hot(torch.from_numpy(LABELS[numbers]), 7).float())
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), numbered_images()[numbers])
        orders.append(tuple(numbers))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_shows_every_sample_once_whole_and_in_order(numbered_shards, mode):
    images, labels, _ = load_shards(numbered_shards)
    for batch_size in (50, 7):
        found = joined(FDTLoader(numbered_shards, batch_size, train=False, mode=mode, **PIXELS))
        assert np.array_equal(found[0].permute(0, 2, 3, 1).numpy(), images)
        assert torch.equal(found[1], torch.from_numpy(labels))


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_does_not_depend_on_threads_prefetch_or_what_ran_before(numbered_shards, mode):
    options = {"mode": mode, "seed": 4} | ({"ring": 64} if mode == "streaming" else {})
    first = FDTLoader(numbered_shards, 32, num_threads=1, prefetch=1, **options)
    second = FDTLoader(numbered_shards, 32, num_threads=4, prefetch=3, **options)
    third = FDTLoader(numbered_shards, 32, prefetch=0, **options)
    next(iter(second))
    list(second)
    first.set_epoch(2)
    third.set_epoch(2)
    expected = list(first)
    assert_same(list(second), expected)
    assert_same(list(third), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_dtype_and_layout_are_as_asked(numbered_shards, mode, dtype):
    plain, plain_targets = next(iter(FDTLoader(numbered_shards, 16, mode=mode, seed=6)))
    asked = FDTLoader(numbered_shards, 16, mode=mode, seed=6, dtype=dtype, channels_last=True)
    images, targets = next(iter(asked))
    assert images.shape == (16, 3, 6, 5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, plain.to(dtype))
    assert torch.equal(targets, plain_targets)
    assert targets.dtype == torch.float32


def test_real_gray_images_can_be_repeated_to_three_channels(few_shards):
    gray = next(iter(FDTLoader(few_shards / "train", 8, mean=117.0)))[0]
    rgb = next(iter(FDTLoader(few_shards / "train", 8, channels=3, mean=117.0)))[0]
    assert gray.shape == (8, 1, 28, 28)
    assert torch.equal(rgb, gray.expand(8, 3, 28, 28))


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_mixed_sizes_stream_when_a_size_is_given_and_are_refused_otherwise(tmp_path, encoding):
    for number in range(12):
        (tmp_path / "images" / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        flat = Image.new("RGB", (10 + number, 12), (number, 100, 200))
        flat.save(tmp_path / "images" / f"class{number % 3}" / f"{number:02d}.png")
    write_shards(open_source(tmp_path / "images"), tmp_path / "shards", encoding)
    with pytest.raises(ValueError, match=r"different sizes, which cannot be resident.*size=\(height, width\)"):
        FDTLoader(tmp_path / "shards", 4, mode="resident")
    for mix in (FDT(), CutMix(1.0)):  # whose box is in an image of one size
        with pytest.raises(ValueError, match=r"different sizes: pass size"):
            FDTLoader(tmp_path / "shards", 4, mix=mix)
    images, labels = joined(FDTLoader(tmp_path / "shards", 4, train=False, size=(8, 9), **PIXELS))
    assert images.shape == (12, 3, 8, 9)
    assert sorted(images[:, 0, 0, 0].round().int().tolist()) == list(range(12))
    assert torch.equal(images[:, 0, 4, 4].round().long() % 3, labels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["png", "webp", "jpg", "keep"])
def test_every_encoding_is_streamed_and_held_as_its_reader_sees_it(tmp_path, encoding, channels):
    """keep: files of three formats in one set. What loses nothing is equal, a JPEG within 2 of what Pillow decodes."""
    rng = np.random.default_rng(0)
    for index in range(24):
        small = rng.integers(0, 256, (3, 3, channels), dtype=np.uint8)
        image = Image.fromarray(small.squeeze()).resize((16, 12))
        path = tmp_path / "photos" / str(index % 4) / f"{index:02d}.{('png', 'jpg', 'webp')[index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, lossless=True)
    folder = tmp_path / "shards"
    write_shards(open_source(tmp_path / "photos"), folder, encoding, samples_per_shard=10)
    expected = torch.from_numpy(load_shards(folder)[0]).permute(0, 3, 1, 2).float()
    for mode in MODES:
        images, _ = joined(FDTLoader(folder, 7, mode=mode, train=False, **PIXELS))
        lossy = encoding in ("jpg", "keep")
        assert (images - expected).abs().max() <= (2 if lossy and mode == "streaming" else 0)


@pytest.mark.parametrize("room", [0, -1])
def test_auto_mode_is_resident_where_the_set_fits_and_streaming_where_not(numbered_shards, monkeypatch, engine, room):
    assert FDTLoader(numbered_shards, 8).mode == "resident"
    padded = 14 * 13 if engine == "torch" else 0  # that engine has each image twice while it makes its frame
    kept = NUM_SAMPLES * (6 * 5 + padded) * 3
    monkeypatch.setattr("fdt_pipeline.loader.memory.available_bytes", lambda device: 2 * kept + room)
    assert FDTLoader(numbered_shards, 8).mode == ("streaming" if room else "resident")


@pytest.mark.parametrize("room", [0, 10**9])
@pytest.mark.parametrize(("partners", "mode"), [("set", "resident"), ("ring", "streaming"), ("batch", "streaming")])
def test_auto_mode_is_the_one_that_has_the_partners(numbered_shards, monkeypatch, partners, mode, room):
    """Of a function of the epoch, those of epoch 0."""
    monkeypatch.setattr("fdt_pipeline.loader.memory.available_bytes", lambda device: room)
    mix = MixUp(0.2, partners=partners)
    assert FDTLoader(numbered_shards, 8, mix=mix).mode == mode
    assert FDTLoader(numbered_shards, 8, mix=lambda epoch: mix).mode == mode


@dataclass(frozen=True)
class Table:
    """Weights for sums of up to num_images, and no more."""

    num_images: int

    def weights(self, k):
        return [np.full(i, 1 / i) for i in range(1, self.num_images + 1)][k - 1]


@pytest.mark.parametrize("options", [{"mode": "resident"}, {"mode": "streaming", "ring": 46}])
@pytest.mark.parametrize("fdt", [FDT(series=Table(7)), FDT(series=Table(3), max_images=3)])
def test_a_series_need_have_no_weights_for_more_images_than_a_sum_can_have(numbered_shards, options, fdt):
    loader = FDTLoader(numbered_shards, 23, mix=fdt, **options)
    _, targets = joined(loader)
    assert (targets > 0).sum(1).max() == fdt.series.num_images
    loader.load_state_dict(loader.state_dict())
