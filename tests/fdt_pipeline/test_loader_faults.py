"""Shards that spoil before or while they are streamed: named or replaced, and never a batch lost in silence."""

import errno
import os
import shutil
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader import reading
from fdt_pipeline.shards import ShardError, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import MODES, PIXELS, assert_same, joined, members_of, numbers_of, overwrite
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

pytestmark = pytest.mark.dali

EAGER = {"prefetch": 0}  # reads no further than asked, so that a fault can be put before it


@pytest.fixture(scope="module", params=["raw", "png"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "shards"
    write_shards(ArraySource(numbered_images(), LABELS), folder, request.param, samples_per_shard=60)
    return folder


@pytest.fixture
def shards(whole, tmp_path):
    """A copy to be spoiled."""
    return shutil.copytree(whole, tmp_path / "shards")


def loader_of(shards, **options):
    options = {"mode": "streaming", "ring": 46, "mix": None, "augment": None, "seed": 5, **PIXELS, **options}
    return FDTLoader(shards, 23, **options)


def spoil(shards, number, part="header", keep_time=True):
    """Overwrite bytes of sample `number` in place, and say "SHARD: sample KEY" of it."""
    tar, image, label = members_of(shards, number)
    offset, length = {
        "magic": (image.offset, 8),
        "header": (image.offset + 18, 8),
        "end": (image.offset + image.size - 15, 8),
        "label": (label.offset, 1),
    }[part]
    overwrite(tar, offset, length, keep_time)
    return f"{tar.name}: sample {image.name.partition('.')[0]}"


def order_of(shards, **options):
    """i64[230]: the numbers in the order of epoch 0."""
    return numbers_of(list(loader_of(shards, **options)))


def test_every_byte_of_the_shards_is_checked_when_a_loader_is_built_if_wished(shards):
    """And in resident mode in any case."""
    tar, image, _ = members_of(shards, 100)
    overwrite(tar, image.offset + image.size, 1)  # of the padding after it
    for mode in MODES:
        with pytest.raises(ShardError, match=rf"{tar.name}: damaged|{tar.name}: .*sha256"):
            FDTLoader(shards, 32, mode=mode, verify=True)
    assert len(list(FDTLoader(shards, 32, mode="streaming"))) == 8


@pytest.mark.parametrize("part", ["end", "label"])
def test_a_byte_that_spoiled_before_is_found_when_its_sample_is_read_first(shards, part):
    name = spoil(shards, 100, part)
    loader = loader_of(shards)
    with pytest.raises(ShardError, match=f"{name}: ({REASONS[part]})"):
        list(loader)


def test_raw_samples_are_checked_when_they_are_read_first_and_encoded_ones_each_time(shards, monkeypatch):
    checked, real = Counter(), reading.Chunk.check

    def check(chunk, checksums):
        checked.update(range(chunk.first, chunk.end))
        real(chunk, checksums)

    monkeypatch.setattr(reading.Chunk, "check", check)
    verified, loader = loader_of(shards, **EAGER, verify=True), loader_of(shards, **EAGER)
    is_raw = read_manifest(shards).encoding == "raw"
    list(verified)
    assert checked.total() == (0 if is_raw else NUM_SAMPLES)
    for epoch in (1, 2):
        checked.clear()
        list(loader)
        assert checked.total() == (0 if is_raw and epoch == 2 else NUM_SAMPLES)
    name = spoil(shards, 100, "end")  # which gives the file a new time of its inode
    with pytest.raises(ShardError, match=f"{name}: changed since it was written"):
        list(loader)


@pytest.mark.parametrize("fault", ["removed", "cut", "replaced by another of its size"])
def test_shards_that_change_under_a_streaming_loader_are_noticed_before_an_epoch(shards, fault):
    loader = loader_of(shards)
    list(loader)
    tar = shards / "shard-000001.tar"
    data = tar.read_bytes()
    tar.unlink()
    if fault != "removed":
        tar.write_bytes(data[:-512] if fault == "cut" else data[:1000] + b"x" + data[1001:])
    with pytest.raises(ShardError, match=r"shard-000001\.tar: changed or removed since the loader was built"):
        list(loader)


REASONS = {
    "magic": "not a png: it begins with|not an npy file of one uint8 image of 6 x 5 x 3",
    "header": "changed since it was written: its CRC-32 is|not an npy file of one uint8 image",
    "end": "changed since it was written: its CRC-32 is",
    "label": "the .cls member holds .*expected a class",
}


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("part", REASONS)
def test_a_sample_that_spoils_during_an_epoch_is_named(shards, engine, prefetch, part):
    """In one line. Pixels too, which decode all the same: their CRC-32 is in the manifest."""
    loader = loader_of(shards, engine=engine, prefetch=prefetch)
    name = spoil(shards, 100, part)
    with pytest.raises(ShardError, match=f"{name}: ({REASONS[part]})") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("part", ["magic", "header", "end"])
@pytest.mark.parametrize("fdt", ["default", None])
def test_a_sample_that_spoiled_is_replaced_counted_and_named_once(shards, part, fdt):
    loader = loader_of(shards, on_bad="substitute", mix=fdt)
    name = spoil(shards, 100, part)
    with pytest.warns(UserWarning, match=name) as warned:
        first, second = (list(loader) for _ in range(2))
    assert len(warned) == 1
    assert [len(targets) for _, targets in first + second] == [23] * 20
    assert loader.stats.bad_samples == 2
    [bad] = loader.stats.bad
    assert name in bad
    for epoch in (first, second) if fdt is None else ():
        numbers = numbers_of(epoch)
        counts = np.bincount(numbers, minlength=NUM_SAMPLES)
        assert counts[100] == 0
        assert sorted(counts)[:2] == [0, 1]
        assert counts.max() == 2
        assert torch.equal(joined(epoch)[1].argmax(1), torch.from_numpy(LABELS[numbers]))


def test_the_substitute_is_the_next_good_sample_of_its_batch(shards, whole):
    expected = order_of(whole)
    place = int(np.flatnonzero(expected == 100)[0])
    begin = place // 46 * 46
    following = np.roll(expected[begin : begin + 46], begin - place)
    for number in following[:3]:
        spoil(shards, number)
        expected[expected == number] = following[3]
    with pytest.warns(UserWarning, match="sample"):
        assert order_of(shards, on_bad="substitute", verify=False).tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:another sample takes:UserWarning")
def test_substitutes_are_the_same_with_other_threads_or_prefetch_and_after_a_resume(shards):
    for number in (3, 50, 51, 170, 229):
        spoil(shards, number)
    options = {"mix": "default", "on_bad": "substitute", "verify": False}
    expected = list(loader_of(shards, num_threads=1, prefetch=0, **options))
    for done, num_threads, prefetch in ((0, 4, 3), (1, 2, 1), (4, 1, 0), (7, 3, 2)):
        loader, resumed = (loader_of(shards, num_threads=num_threads, prefetch=prefetch, **options) for _ in range(2))
        list(islice(loader, done))
        resumed.load_state_dict(loader.state_dict())
        assert_same(list(resumed), expected[done:])


def test_a_stand_in_has_weight_0_in_an_evaluation(shards):
    spoil(shards, 100)
    loader = FDTLoader(shards, 23, mode="streaming", train=False, on_bad="substitute", weights=True, verify=False,
                       **PIXELS)  # fmt: skip
    with pytest.warns(UserWarning, match="sample"):
        images, labels, weights = joined(loader)
    numbers = numbers_of([(images,)])
    counted = np.bincount(numbers, weights.numpy(), NUM_SAMPLES)
    assert counted.tolist() == [float(number != 100) for number in range(NUM_SAMPLES)]
    assert torch.equal(labels, torch.from_numpy(LABELS[numbers]))


def test_a_batch_without_a_good_sample_is_an_error_all_the_same(shards):
    for number in range(NUM_SAMPLES):
        spoil(shards, number)
    with pytest.raises(ShardError, match=r"no sample of this batch of 23 is good: .*shard-00000\d.tar"):
        order_of(shards, on_bad="substitute", verify=False)


@pytest.mark.parametrize("on_bad", ["error", "substitute"])
def test_a_tar_overwritten_while_it_is_read_is_noticed(shards, monkeypatch, on_bad):
    """In place and of the same size, when its first samples have been yielded; the next epoch sees a changed time."""
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1)
    loader = loader_of(shards, on_bad=on_bad, ring=23, **EAGER)
    order = order_of(shards, ring=23)
    batches = iter(loader)
    before = list(islice(batches, 5))
    name = spoil(shards, order[-1], keep_time=False)
    if on_bad == "error":
        with pytest.raises(ShardError, match=name):
            list(batches)
        return
    with pytest.warns(UserWarning, match=name):
        after = list(batches)
    assert numbers_of(before + after)[:-1].tolist() == order[:-1].tolist()
    assert loader.stats.bad_samples == 1
    with pytest.raises(ShardError, match="changed or removed since the loader was built"):
        list(loader)


@pytest.mark.parametrize("on_bad", ["error", "substitute"])
def test_a_shard_deleted_in_mid_epoch_is_an_error_that_names_it_in_the_next_one_too(shards, on_bad):
    loader = loader_of(shards, on_bad=on_bad, ring=23, **EAGER)
    removed, *_ = members_of(shards, order_of(shards, ring=23)[-1])
    batches = iter(loader)
    next(batches)
    removed.unlink()
    for rest in (batches, loader):
        with pytest.raises(ShardError, match=removed.name):
            list(rest)


@pytest.mark.parametrize("on_bad", ["error", "substitute"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_read_error_is_an_error_that_names_the_shard(shards, on_bad, prefetch, monkeypatch):
    loader = loader_of(shards, on_bad=on_bad, prefetch=prefetch)
    real, reads = os.pread, []

    def failing(descriptor, size, offset):
        reads.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if len(reads) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, size, offset)

    monkeypatch.setattr(reading.os, "pread", failing)
    with pytest.raises(ShardError, match=r"shard-00000\d.tar.*Input/output error") as caught:
        list(loader)
    assert os.path.basename(reads[2]) in str(caught.value)
    monkeypatch.undo()
    loader.set_epoch(0)
    assert numbers_of(list(loader)).tolist() == order_of(shards).tolist()


@pytest.mark.parametrize("bad", [0, -1])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_goes_on_from_its_state_after_an_error(shards, whole, bad, prefetch):
    """Repaired, the set is shown on from the batch at which it failed, be it the first or the last."""
    loader = loader_of(shards, ring=23, prefetch=prefetch)
    order = order_of(whole, ring=23)
    damaged, *_ = members_of(shards, order[bad])
    spoil(shards, order[bad])
    found = []
    with pytest.raises(ShardError, match=damaged.name):
        found.extend(loader)  # keeps what came before the error
    assert len(found) == (9 if bad else 0)
    state = loader.state_dict()
    shutil.copy(whole / damaged.name, damaged)
    resumed = loader_of(shards, ring=23)
    resumed.load_state_dict(state)
    assert numbers_of([*found, *resumed]).tolist() == order.tolist()
