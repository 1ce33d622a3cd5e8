"""Shards that spoil while they are streamed: named or replaced, and never a batch lost in silence."""

import errno
import os
import shutil
import time
import warnings
from contextlib import suppress
from itertools import islice

import numpy as np
import pytest
import torch

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader import reading as windows
from fdt_pipeline.shards import ShardError, write_shards
from fdt_pipeline.shards.index import parse_index
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, assert_same, joined, numbers_of
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

pytestmark = pytest.mark.dali

EAGER = {"prefetch": 0}  # reads no further than asked, so that a fault can be put before it
FAULTY = (ShardError, RuntimeError)


@pytest.fixture(scope="module", params=["raw", "png"])
def encoding(request):
    return request.param


@pytest.fixture(scope="module")
def whole(encoding, tmp_path_factory):
    folder = tmp_path_factory.mktemp(encoding) / "shards"
    write_shards(ArraySource(numbered_images(), LABELS), folder, encoding, samples_per_shard=60)
    return folder


@pytest.fixture
def shards(whole, tmp_path):
    """A copy to be spoiled."""
    return shutil.copytree(whole, tmp_path / "shards")


def loader_of(shards, **options):
    options = {"mode": "streaming", "mix_window": 46, "mix": None, "augment": None, "seed": 5, **PIXELS, **options}
    return FDTLoader(shards, 23, **options)


def spoil(shards, number, part="header", keep_time=True):
    """Overwrite bytes of sample `number`'s image in place, and say "SHARD: sample KEY" of it."""
    tar, image = place_of(shards, number)
    offset = {"magic": 0, "header": 18, "data": 41, "end": image.size - 15}[part]
    overwrite(tar, image.offset + offset, 8, keep_time)
    return f"{tar.name}: sample {image.name.partition('.')[0]}"


def place_of(shards, number):
    """(tar, member) of the image of sample `number`, which is its key."""
    for index in shards.glob("*.idx"):
        for image, _ in parse_index(index.read_text()):
            if int(image.name.partition(".")[0]) == number:
                return index.with_suffix(".tar"), image
    raise AssertionError(number)


def overwrite(tar, offset, length, keep_time=True):
    state = tar.stat()
    with tar.open("r+b") as file:
        file.seek(offset)
        bytes_there = file.read(length)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in bytes_there))
    if keep_time:
        os.utime(tar, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert tar.stat().st_size == state.st_size


def order_of(shards, epoch=0, **options):
    """i64[230]: the numbers in the order of an epoch."""
    loader = loader_of(shards, **options)
    loader.set_epoch(epoch)
    return numbers_of(list(loader))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("part", ["magic", "header", "end"])
def test_a_sample_that_spoiled_is_named_by_shard_and_key(shards, prefetch, part):
    """Pixels too, which decode all the same: their CRC-32 is in the manifest."""
    loader = loader_of(shards, prefetch=prefetch)
    name = spoil(shards, 100, part)
    with pytest.raises(FAULTY, match=name):
        list(loader)


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
    assert all(name in bad for bad in loader.stats.bad)
    assert 1 <= len(loader.stats.bad) <= 2
    if fdt is None:
        for epoch in (first, second):
            numbers = numbers_of(epoch)
            counts = np.bincount(numbers, minlength=NUM_SAMPLES)
            assert counts[100] == 0
            assert sorted(counts)[:2] == [0, 1]
            assert counts.max() == 2
            assert torch.equal(joined(epoch)[1].argmax(1), torch.from_numpy(LABELS[numbers]))


def test_the_substitute_is_the_next_good_sample_of_its_window(shards, whole):
    order = order_of(whole)
    place = int(np.flatnonzero(order == 100)[0])
    begin = place // 46 * 46
    window = order[begin : begin + 46]
    following = np.roll(window, -(place - begin))
    for number in following[:3]:
        spoil(shards, number)
    with pytest.warns(UserWarning, match="sample"):
        found = numbers_of(list(loader_of(shards, on_bad="substitute", verify=False)))
    expected = order.copy()
    for number in following[:3]:
        expected[order == number] = following[3]
    assert found.tolist() == expected.tolist()


def test_substitutes_do_not_depend_on_threads_or_prefetch(shards):
    for number in (3, 50, 51, 170, 229):
        spoil(shards, number)
    epochs = []
    for num_threads, prefetch in ((1, 0), (4, 3), (2, 1)):
        loader = loader_of(shards, mix="default", on_bad="substitute", num_threads=num_threads, prefetch=prefetch,
                           verify=False)  # fmt: skip
        with pytest.warns(UserWarning, match="sample"):
            epochs.append(list(loader))
        assert loader.stats.bad_samples == 5
    assert_same(epochs[1], epochs[0])
    assert_same(epochs[2], epochs[0])


@pytest.fixture
def undecodable(tmp_path, monkeypatch):
    """Folder of files some of which begin as an image and are just what was written, but do not decode."""
    write_shards(ArraySource(numbered_images(), LABELS), tmp_path / "png", "png", samples_per_shard=60)
    for number in (3, 50, 51, 170, 229):
        spoil(tmp_path / "png", number, "data")  # a header with a size of nonsense kills DALI 2.4
    monkeypatch.setattr(windows.Chunk, "check", lambda chunk, checksums: None)
    return tmp_path / "png"


def test_files_that_only_the_decoder_refuses_are_replaced_too(undecodable):
    """DALI fails with a whole window then, wherever it is ahead of the consumer, and none is lost or repeated."""
    options = {"mix": "default", "on_bad": "substitute", "verify": False}
    epochs = []
    for num_threads, prefetch in ((1, 0), (4, 3), (2, 1)):
        loader = loader_of(undecodable, num_threads=num_threads, prefetch=prefetch, **options)
        with pytest.warns(UserWarning, match="sample") as warned:
            epochs.append(list(loader))
        assert len(warned) == len(loader.stats.bad) == loader.stats.bad_samples == 5
        assert (loader.stats.batches, loader.stats.windows) == (10, 5)
        loader.set_epoch(0)
        epochs.append(list(loader))
    for epoch in epochs[1:]:
        assert_same(epoch, epochs[0])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_files_that_only_the_decoder_refuses_are_named(undecodable, prefetch):
    with pytest.raises(FAULTY, match=r"shard-00000\d.tar: sample 0+(3|50|51|170|229): "):
        list(loader_of(undecodable, verify=False, prefetch=prefetch))


def test_a_stand_in_has_weight_0_in_an_evaluation(shards):
    spoil(shards, 100)
    loader = loader_of(shards, train=False, mix="default", augment="default", mix_window=None, on_bad="substitute",
                       weights=True, verify=False)  # fmt: skip
    with pytest.warns(UserWarning, match="sample"):
        images, labels, weights = joined(list(loader))
    numbers = numbers_of([(images,)])
    counted = np.bincount(numbers, weights.numpy(), NUM_SAMPLES)
    assert counted.tolist() == [float(number != 100) for number in range(NUM_SAMPLES)]
    assert torch.equal(labels, torch.from_numpy(LABELS[numbers]))


def test_a_window_without_a_good_sample_is_an_error_all_the_same(shards):
    for number in range(NUM_SAMPLES):
        spoil(shards, number)
    loader = loader_of(shards, on_bad="substitute", verify=False)
    with pytest.raises(FAULTY, match=r"shard-00000\d.tar"):
        list(loader)


@pytest.mark.parametrize("keep_time", [True, False])
@pytest.mark.parametrize("on_bad", ["error", "substitute"])
def test_a_tar_overwritten_while_it_is_read_is_noticed(shards, monkeypatch, keep_time, on_bad):
    """In place and of the same size, when its first samples have been yielded; the next epoch sees a changed time."""
    monkeypatch.setattr(windows, "CHUNK_BYTES", 1)
    loader = loader_of(shards, on_bad=on_bad, mix_window=23, **EAGER)
    order = order_of(shards, mix_window=23)
    batches = iter(loader)
    before = list(islice(batches, 5))
    name = spoil(shards, order[-1], keep_time=keep_time)
    if on_bad == "error":
        with pytest.raises(FAULTY, match=name):
            list(batches)
        return
    with pytest.warns(UserWarning, match=name):
        after = list(batches)
    assert numbers_of(before + after)[:-1].tolist() == order[:-1].tolist()
    assert loader.stats.bad_samples == 1
    if keep_time:
        assert len(list(loader)) == len(loader)
    else:
        with pytest.raises(ShardError, match="changed or removed since the loader was built"):
            list(loader)


@pytest.mark.parametrize("on_bad", ["error", "substitute"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_shard_deleted_in_mid_epoch_is_an_error_that_names_it(shards, on_bad, prefetch, monkeypatch):
    """prefetch=2 reads ahead, perhaps to the end: then the epoch is whole, and the next one fails."""
    loader = loader_of(shards, on_bad=on_bad, mix_window=23, prefetch=prefetch)
    order = order_of(shards, mix_window=23)
    batches = iter(loader)
    first = next(batches)
    removed, _ = place_of(shards, order[-1])
    removed.unlink()
    if not prefetch:
        with pytest.raises(ShardError, match=removed.name):
            list(batches)
    else:
        with suppress(ShardError):
            assert numbers_of([first, *batches]).tolist() == order.tolist()
    with pytest.raises(ShardError, match=removed.name):
        list(loader)


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

    monkeypatch.setattr(windows.os, "pread", failing)
    with pytest.raises(FAULTY, match=r"shard-00000\d.tar") as caught:
        list(loader)
    assert "Input/output error" in str(caught.value)
    assert os.path.basename(reads[2]) in str(caught.value)
    monkeypatch.undo()
    loader.set_epoch(0)
    assert numbers_of(list(loader)).tolist() == order_of(shards).tolist()


def test_a_loader_goes_on_from_its_state_after_an_error(shards, whole):
    """Mended, the set is shown on from the batch at which it failed."""
    loader = loader_of(shards, mix_window=23, **EAGER)
    order = order_of(whole, mix_window=23)
    damaged, _ = place_of(shards, order[-1])
    spoil(shards, order[-1])
    found = []
    with pytest.raises(FAULTY, match=damaged.name):
        found.extend(loader)  # keeps what came before the error
    state = loader.state_dict()
    shutil.copy(whole / damaged.name, damaged)
    resumed = loader_of(shards, mix_window=23)
    resumed.load_state_dict(state)
    found += list(resumed)
    assert numbers_of(found).tolist() == order.tolist()


def test_an_epoch_that_fails_at_its_first_batch_is_not_passed_over(shards, whole):
    loader = loader_of(shards, **EAGER)
    damaged, _ = place_of(shards, order_of(whole)[0])
    spoil(shards, order_of(whole)[0])
    with pytest.raises(FAULTY, match=damaged.name):
        next(iter(loader))
    shutil.copy(whole / damaged.name, damaged)
    resumed = loader_of(shards)
    resumed.load_state_dict(loader.state_dict())
    assert numbers_of(list(resumed)).tolist() == order_of(whole).tolist()


def test_a_resumed_epoch_has_the_same_substitutes(shards):
    for number in (3, 50, 51, 170, 229):
        spoil(shards, number)
    options = {"mix": "default", "on_bad": "substitute", "verify": False}
    with pytest.warns(UserWarning, match="sample"):
        expected = list(loader_of(shards, **options))
    for done in (1, 4, 7):
        loader, resumed = loader_of(shards, **options), loader_of(shards, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that samples are bad
            list(islice(loader, done))
            resumed.load_state_dict(loader.state_dict())
            assert_same(list(resumed), expected[done:])


def test_a_slow_disk_changes_nothing_but_the_time_waited(shards, monkeypatch):
    expected = list(loader_of(shards))
    real, slept = os.pread, []

    def slow(*arguments):
        begin = time.monotonic()
        time.sleep(0.02)
        slept.append(time.monotonic() - begin)
        return real(*arguments)

    loader = loader_of(shards, **EAGER)
    monkeypatch.setattr(windows.os, "pread", slow)
    assert_same(list(loader), expected)
    assert len(slept) >= 4
    assert loader.stats.wait_seconds >= sum(slept)


def test_on_bad_is_for_streaming_and_is_one_of_two(whole):
    with pytest.raises(ValueError, match="on_bad"):
        loader_of(whole, on_bad="skip")


def test_a_snapshot_of_the_statistics_stays_what_it_was(whole):
    loader = loader_of(whole, mix="default")
    before = loader.stats
    batches = iter(loader)
    next(batches)
    during = loader.stats
    list(batches)
    assert (before.batches, before.images, before.bad_samples, before.windows) == (0, 0, 0, 0)
    assert (during.batches, during.images) == (1, 23)
    assert (loader.stats.batches, loader.stats.images) == (10, 230)
    assert loader.stats.windows == 5
