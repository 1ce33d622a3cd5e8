"""The loader against the definition, in both modes; runs with every supported DALI."""

import gc
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from fdt_pipeline import FDT, Augment, FDTLoader, Power
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import (
    PLAIN,
    Pool,
    draw_plan,
    epoch_order,
    standardize,
    superpose_images,
    superpose_targets,
)
from fdt_pipeline.loader.memory import is_small_window
from fdt_pipeline.shards import ShardError, load_shards, write_shards
from fdt_pipeline.shards.index import parse_index
from fdt_pipeline.sources import ArraySource, open_source
from tests.memory import steady_growth
from tests.numbered import LABELS, NUM_SAMPLES, image_numbers, numbered_images

pytestmark = pytest.mark.dali

MODES = ("resident", "streaming")
PIXELS = {"mean": 0, "std": 1}  # leaves pixels in 0..255, so that images can be told apart


@pytest.fixture(params=["native", "torch"], autouse=True)
def engine(request, monkeypatch):
    """Every test runs with both; loaders of other processes take the default, native."""
    monkeypatch.setitem(FDTLoader.__init__.__kwdefaults__, "engine", request.param)
    return request.param


def epoch_of(loader):
    images, targets = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


@pytest.mark.parametrize("augment", [None, Augment(pad=2)])
@pytest.mark.parametrize(
    "fdt",
    [FDT(), FDT(min_images=2, max_images=3, series=Power(2), anchor="epoch"), FDT(probability=0.5, targets="dominant")],
)
def test_resident_outputs_are_the_definitions(numbered_shards, fdt, augment):
    images, labels, _ = load_shards(numbered_shards)
    pool, epoch = Pool(labels, 7), 4
    loader = FDTLoader(numbered_shards, 32, mix=fdt, augment=augment, mode="resident", seed=9)
    loader.set_epoch(epoch)
    mixed, targets = epoch_of(loader)
    order = epoch_order(9, epoch, NUM_SAMPLES)
    assert mixed.shape == (NUM_SAMPLES, 3, 6, 5)
    for i in range(0, NUM_SAMPLES, 7):
        leader = int(order[i]) if fdt.anchor == "epoch" else None
        plan = draw_plan(9, epoch, i, pool, fdt, augment or Augment(0, False), leader)
        expected = standardize(superpose_images(plan, images, augment.pad if augment else 0), (122, 117, 104), 256)
        assert np.abs(mixed[i].numpy() - expected.transpose(2, 0, 1)).max() < 2e-6
        assert np.array_equal(targets[i].numpy(), superpose_targets(plan, 7, fdt.targets))


@pytest.mark.parametrize("fdt", [FDT(), FDT(anchor="epoch", min_images=2)])
def test_streaming_outputs_are_the_definitions_within_each_window(numbered_shards, fdt):
    """The order of the stream is read off plain training, which walks the same one."""
    shared = {"mode": "streaming", "seed": 5, "augment": None, "mix_window": 58, **PIXELS}
    with FDTLoader(numbered_shards, 20, mix=FDT(max_images=1, anchor="epoch"), **shared) as plain:
        stream = image_numbers(epoch_of(plain)[0])
    mixed, targets = epoch_of(FDTLoader(numbered_shards, 20, mix=fdt, **shared))
    assert sorted(stream) == list(range(NUM_SAMPLES))
    images = numbered_images()
    for start in range(0, NUM_SAMPLES, 58):
        window = stream[start : start + 58]
        indices = np.arange(start, start + len(window))
        leaders = np.arange(len(window)) if fdt.anchor == "epoch" else None
        plans = draw_plans(5, 0, indices, Pool(LABELS[window], 7), fdt, leaders=leaders)
        assert np.array_equal(targets[indices].numpy(), batch_targets(plans, 7))
        for i in range(0, len(window), 5):
            expected = superpose_images(plans[i], images[window]).transpose(2, 0, 1)
            assert np.abs(mixed[start + i].numpy() - expected).max() < 2e-6 * 256


@pytest.mark.parametrize("mode", MODES)
def test_plain_training_shows_every_sample_once_an_epoch_in_a_new_order(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mix=None, augment=None, mode=mode, seed=2, **PIXELS)
    orders = []
    for _ in range(3):
        images, targets = epoch_of(loader)
        numbers = image_numbers(images)
        assert sorted(numbers) == list(range(NUM_SAMPLES))
        assert torch.equal(targets.argmax(1), torch.from_numpy(LABELS[numbers]))
        assert torch.equal(targets.sum(1), torch.ones(NUM_SAMPLES))
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), numbered_images()[numbers])
        orders.append(tuple(numbers))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_shows_every_sample_once_whole_and_in_order(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 50, train=False, mode=mode, **PIXELS)
    first, again = epoch_of(loader), epoch_of(loader)
    numbers = image_numbers(first[0])
    assert sorted(numbers) == list(range(NUM_SAMPLES))
    assert np.array_equal(first[0].permute(0, 2, 3, 1).numpy(), load_shards(numbered_shards)[0])
    assert first[1].dtype == torch.int64
    assert torch.equal(first[1], torch.from_numpy(LABELS[numbers]))
    assert torch.equal(first[0], again[0])
    assert np.array_equal(numbers, image_numbers(epoch_of(FDTLoader(numbered_shards, 7, train=False, **PIXELS))[0]))


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_does_not_depend_on_threads_prefetch_or_what_ran_before(numbered_shards, mode):
    window = {} if mode == "resident" else {"mix_window": 64}
    first = FDTLoader(numbered_shards, 32, mode=mode, seed=4, num_threads=1, prefetch=1, **window)
    second = FDTLoader(numbered_shards, 32, mode=mode, seed=4, num_threads=4, prefetch=3, **window)
    third = FDTLoader(numbered_shards, 32, mode=mode, seed=4, prefetch=0, **window)
    next(iter(second))
    list(second)
    first.set_epoch(2)
    third.set_epoch(2)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[0], c[0])


def test_resident_outputs_do_not_depend_on_the_batch_size(numbered_shards):
    small, large = (FDTLoader(numbered_shards, size, mode="resident", seed=4) for size in (9, 200))
    for a, b in zip(epoch_of(small), epoch_of(large), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_early_break_is_safe_and_the_epoch_can_be_run_again(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mode=mode, seed=1)
    whole = epoch_of(loader)
    loader.set_epoch(0)
    for number, (images, _) in enumerate(loader):
        if number == 2:
            assert torch.equal(images, whole[0][64:96])
            break
    assert loader.epoch == 1
    loader.set_epoch(0)
    assert torch.equal(epoch_of(loader)[1], whole[1])


@pytest.mark.parametrize("mode", MODES)
def test_two_iterations_at_once_do_not_disturb_each_other(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mode=mode, seed=1)
    expected = [epoch_of(loader)[0], epoch_of(loader)[0]]
    loader.set_epoch(0)
    pairs = [(a[0], b[0]) for a, b in zip(loader, loader, strict=True)]
    for i in range(2):
        assert torch.equal(torch.cat([pair[i] for pair in pairs]), expected[i])


@pytest.mark.parametrize("mode", MODES)
def test_batches_stay_as_they_were_when_the_next_are_made(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mode=mode)
    kept = [(images, images.clone(), targets, targets.clone()) for images, targets in loader]
    for images, images_then, targets, targets_then in kept:
        assert torch.equal(images, images_then)
        assert torch.equal(targets, targets_then)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("last_batch", "sizes"), [("partial", [100, 100, 30]), ("drop", [100, 100])])
def test_len_is_the_number_of_batches(numbered_shards, mode, last_batch, sizes):
    loader = FDTLoader(numbered_shards, 100, mode=mode, last_batch=last_batch)
    assert len(loader) == len(sizes)
    assert [len(targets) for _, targets in loader] == sizes


@pytest.mark.parametrize("mode", MODES)
def test_dtype_and_layout_are_as_asked(numbered_shards, mode):
    common = {"mode": mode, "mix_window": None, "seed": 6}
    plain = next(iter(FDTLoader(numbered_shards, 16, **common)))
    other = next(iter(FDTLoader(numbered_shards, 16, dtype=torch.float16, channels_last=True, **common)))
    assert other[0].dtype == torch.float16
    assert other[0].shape == (16, 3, 6, 5)
    assert other[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other[0].contiguous(), plain[0].half())
    assert other[1].dtype == torch.float32
    assert torch.allclose(plain[1].sum(1), torch.ones(16), atol=1e-6)


def test_real_gray_images_can_be_repeated_to_three_channels(fashion_shards):
    gray = next(iter(FDTLoader(fashion_shards / "train", 8, mean=117.0)))[0]
    rgb = next(iter(FDTLoader(fashion_shards / "train", 8, channels=3, mean=117.0)))[0]
    assert gray.shape == (8, 1, 28, 28)
    assert torch.equal(rgb, gray.expand(8, 3, 28, 28))


def test_png_and_raw_shards_give_the_same_batches(numbered_shards, tmp_path):
    write_shards(ArraySource(numbered_images(), LABELS), tmp_path / "png", "png", seed=3, samples_per_shard=60)
    for mode in MODES:
        raw, png = (FDTLoader(folder, 32, mode=mode, seed=8) for folder in (numbered_shards, tmp_path / "png"))
        assert torch.equal(epoch_of(raw)[0], epoch_of(png)[0])


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_mixed_sizes_stream_when_a_size_is_given_and_are_refused_otherwise(tmp_path, encoding):
    for number in range(12):
        (tmp_path / "images" / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        flat = Image.new("RGB", (10 + number, 12), (number, 100, 200))
        flat.save(tmp_path / "images" / f"class{number % 3}" / f"{number:02d}.png")
    write_shards(open_source(tmp_path / "images"), tmp_path / "shards", encoding)
    with pytest.raises(ValueError, match=r"different sizes, which cannot be resident.*size=\(height, width\)"):
        FDTLoader(tmp_path / "shards", 4, mode="resident")
    with pytest.raises(ValueError, match=r"different sizes: pass size"):
        FDTLoader(tmp_path / "shards", 4)
    images, labels = epoch_of(FDTLoader(tmp_path / "shards", 4, train=False, size=(8, 9), **PIXELS))
    assert images.shape == (12, 3, 8, 9)
    assert sorted(images[:, 0, 0, 0].round().int().tolist()) == list(range(12))
    assert torch.equal(images[:, 0, 4, 4].round().long() % 3, labels)


def test_auto_mode_is_resident_where_the_set_fits_and_streaming_where_not(numbered_shards, monkeypatch, engine):
    assert FDTLoader(numbered_shards, 8).mode == "resident"
    padded = 14 * 13 if engine == "torch" else 0  # that engine has each image twice while it makes its frame
    kept = NUM_SAMPLES * (6 * 5 + padded) * 3
    monkeypatch.setattr("fdt_pipeline.loader.memory.available_bytes", lambda device: 2 * kept)
    assert FDTLoader(numbered_shards, 8).mode == "resident"
    monkeypatch.setattr("fdt_pipeline.loader.memory.available_bytes", lambda device: 2 * kept - 1)
    assert FDTLoader(numbered_shards, 8).mode == "streaming"


def test_a_window_too_small_for_the_classes_warns(numbered_shards):
    with pytest.warns(UserWarning, match="mix window of 6 samples will often hold fewer than 7 .*mix_window=70"):
        loader = FDTLoader(numbered_shards, 6, mode="streaming", mix_window=6)
    assert max((targets > 0).sum(1).max() for _, targets in loader) <= 6
    with pytest.warns(UserWarning, match="will often hold fewer"):
        FDTLoader(numbered_shards, 6, mode="streaming", mix_window=33)
    FDTLoader(numbered_shards, 6, mode="streaming", mix_window=46)
    FDTLoader(numbered_shards, 6, mode="streaming", mix_window=6, mix=None)


def test_a_small_window_warns_only_where_fewer_images_are_mixed_than_max_images_asks_for(numbered_shards):
    """6 samples of 7 classes are of 2 or more of them but once in 16,807 times, and of 6 once in 20 times."""
    for fdt in (FDT(max_images=2), FDT(probability=0)):
        loader = FDTLoader(numbered_shards, 6, mode="streaming", mix_window=6, mix=fdt)
        assert (epoch_of(loader)[1] > 0).sum(1).max() == (2 if fdt.probability else 1)
    with pytest.warns(UserWarning, match="6 samples will often hold fewer than 6 classes.*mix_window=60"):
        FDTLoader(numbered_shards, 6, mode="streaming", mix_window=6, mix=FDT(max_images=6))


@pytest.mark.parametrize(("wanted", "num_classes"), [(2, 7), (4, 10), (10, 1000)])
def test_a_window_is_small_where_random_samples_lack_more_than_seven_in_a_thousand_classes(wanted, num_classes):
    rng = np.random.default_rng(0)
    for window in (wanted, wanted + 1, 2 * wanted, 3 * wanted):
        drawn = np.sort(rng.integers(num_classes, size=(20_000, window)), axis=1)
        found = 1 + (np.diff(drawn, axis=1) > 0).sum(1)
        lacking = np.maximum(0, wanted - found).mean() / wanted
        assert is_small_window(FDT(max_images=wanted), window, 10**6, num_classes) == (lacking > 0.0067)


def test_streaming_checks_every_byte_of_the_shards_when_it_is_built(numbered_shards, tmp_path):
    shutil.copytree(numbered_shards, tmp_path / "shards")
    tar = tmp_path / "shards" / "shard-000002.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    for mode in MODES:
        with pytest.raises(ShardError, match=r"shard-000002\.tar: damaged"):
            FDTLoader(tmp_path / "shards", 32, mode=mode)
    FDTLoader(tmp_path / "shards", 32, mode="streaming", verify=False)


@pytest.mark.parametrize("fault", ["removed", "cut", "replaced by another of its size"])
def test_shards_that_change_under_a_streaming_loader_are_noticed_before_an_epoch(numbered_shards, tmp_path, fault):
    shutil.copytree(numbered_shards, tmp_path / "shards")
    loader = FDTLoader(tmp_path / "shards", 32, mode="streaming")
    list(loader)
    tar = tmp_path / "shards" / "shard-000001.tar"
    data = tar.read_bytes()
    tar.unlink()
    if fault != "removed":
        tar.write_bytes(data[:-512] if fault == "cut" else data[:1000] + b"x" + data[1001:])
    with pytest.raises(ShardError, match=r"shard-000001\.tar: changed or removed since the loader was built"):
        list(loader)


@pytest.mark.parametrize(
    ("encoding", "member", "error", "reason"),
    [
        ("png", 0, ShardError, "not a png: it begins with"),
        ("png+40", 0, ShardError, "changed since it was written: its CRC-32 is"),
        ("raw", 1, ShardError, "the .cls member holds .*expected a class"),
        ("raw", 0, ShardError, "not an npy file of one uint8 image of 6 x 5 x 3"),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_sample_that_spoils_during_an_epoch_is_named(tmp_path, encoding, member, error, reason, prefetch):
    """By shard and key, though DALI itself says no more than that a batch failed."""
    folder = tmp_path / "shards"
    encoding, _, further = encoding.partition("+")
    manifest = write_shards(ArraySource(numbered_images(), LABELS), folder, encoding, samples_per_shard=60)
    loader = FDTLoader(folder, 32, mode="streaming", mix_window=46, prefetch=prefetch)
    tar = folder / "shard-000001.tar"
    state = tar.stat()
    spoiled = parse_index(tar.with_suffix(".idx").read_text())[17][member]
    with tar.open("r+b") as file:
        file.seek(spoiled.offset + int(further or 0))
        file.write(bytes(min(40, spoiled.size)))
    os.utime(tar, ns=(state.st_atime_ns, state.st_mtime_ns))
    key = spoiled.name.partition(".")[0]
    with pytest.raises(error, match=f"shard-000001.tar: sample {key}: |{reason}") as caught:
        list(loader)
    for part in ("shard-000001.tar", key, "epoch 0" if error is RuntimeError else reason):
        assert re.search(part, str(caught.value))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert len(manifest.shards) == 4


@pytest.mark.process
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_stays_a_keyboard_interrupt(numbered_shards, mode, prefetch):
    code = f"""
import os, signal, threading
from fdt_pipeline import FDTLoader
loader = FDTLoader({str(numbered_shards)!r}, 32, mode={mode!r}, prefetch={prefetch})
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        list(loader)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "interrupted\n", done.stderr


def test_closing_a_loader_ends_its_iterations(numbered_shards):
    loader = FDTLoader(numbered_shards, 8)
    batches = iter(loader)
    next(batches)
    loader.close()
    assert list(batches) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"mode": "fast"}, "mode must be one of"),
        ({"device": "tpu"}, "device"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"seed": 2**64}, "seed must be in"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"mean": float("nan")}, "mean must be a finite number"),
        ({"std": float("nan")}, "std must be a finite number"),
        ({"size": 7, "mode": "streaming"}, "size must be"),
        ({"size": (3.5, 3), "mode": "streaming"}, "height of size must be a whole number"),
        ({"last_batch": "full"}, "last_batch must be one of"),
        ({"batch_size": 500, "last_batch": "drop"}, "leaves no batch: 230 samples in batches of 500"),
        ({"train": False, "mix": FDT()}, "leave mix out"),
        ({"train": False, "augment": Augment()}, "leave augment out"),
        ({"mix": FDT(max_images=8)}, "max_images 8 is over the number of classes, 7"),
        ({"mix": "harmonic"}, "mix must be an FDT or None"),
        ({"dtype": torch.float64}, "cast other types after"),
        ({"channels": 1}, "only gray ones can be repeated"),
        ({"mean": (1.0, 2.0)}, "mean must be a finite number or 3 of them"),
        ({"std": 0}, "std must be above 0"),
        (
            {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            r"multiply by 255: mean=\(123.675, 116.28, 103.53\), std=\(58.395, 57.12, 57.375\)",
        ),
        ({"mean": np.float32(0.5), "std": 0.5}, "multiply by 255: mean=127.5, std=127.5$"),
        ({"mean": 0.5}, "multiply by 255: mean=127.5$"),
        ({"mean": 0, "std": 0.5}, "multiply by 255: mean=0, std=127.5$"),
        ({"std": (0.229, 0.224, 1)}, r"multiply by 255: std=\(58.395, 57.12, 255\)$"),
        ({"size": (4, 4), "mode": "resident"}, "size resizes while streaming"),
        ({"size": (0, 4), "mode": "streaming"}, "height of size must be 1 or more"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"channels": 0}, "channels must be 1 or more"),
        ({"device": "cuda:99"}, "device"),
        ({"prefetch": -1}, "prefetch must be 0 or more"),
        ({"mix_window": 0}, "mix_window must be 1 or more"),
        ({"mix_window": 10, "mode": "resident"}, "mix_window is for streaming"),
    ],
)
def test_bad_arguments_are_refused_when_the_loader_is_built(numbered_shards, options, match):
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, **{"batch_size": 8, **options})


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0, 255), (127.5, 1), ((0.5, 9, 9), 256), ((0, 1, 1), 1)])
def test_normalizations_of_grey_levels_are_taken(numbered_shards, mean, std):
    assert FDTLoader(numbered_shards, 8, mean=mean, std=std).std == tuple(np.broadcast_to(std, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused(numbered_shards):
    with pytest.raises(ValueError, match='torch sees no GPU here: pass device="cpu"'):
        FDTLoader(numbered_shards, 8, device="cuda")


def test_one_class_cannot_be_mixed_but_can_be_read(tmp_path):
    write_shards(ArraySource(numbered_images(9), np.zeros(9, np.int64)), tmp_path / "one")
    with pytest.raises(ValueError, match="needs 2 or more of them, got 1"):
        FDTLoader(tmp_path / "one", 3)
    assert len(epoch_of(FDTLoader(tmp_path / "one", 3, mix=None))[0]) == 9


def test_epochs_out_of_range_and_closed_loaders_are_refused(numbered_shards):
    with FDTLoader(numbered_shards, 8) as loader:
        with pytest.raises(ValueError, match="epoch must be in"):
            loader.set_epoch(-1)
        loader.set_epoch(2**32 - 1)
        assert len(list(loader)) == len(loader)
        with pytest.raises(ValueError, match="epoch must be in"):
            iter(loader)
        loader.set_epoch(0)
        next(iter(loader))
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_loaders_made_and_dropped_leave_no_threads(numbered_shards, mode):
    def threads():
        gc.collect()
        return len(os.listdir("/proc/self/task"))

    list(islice(FDTLoader(numbered_shards, 32, mode=mode), 2))
    before = threads()
    for _ in range(10):
        list(islice(FDTLoader(numbered_shards, 32, mode=mode), 2))
    assert threads() <= before + 1


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_many_epochs_take_no_more_memory(tmp_path, mode):
    """In a fresh process, as freed memory would hide it: streaming once grew by 27 MiB in 40 epochs here."""
    write_shards(ArraySource(numbered_images(400, (12, 12, 3)), np.arange(400) % 10), tmp_path / "shards")
    code = f"""
import gc, os
from fdt_pipeline import FDTLoader
loader = FDTLoader({str(tmp_path / "shards")!r}, 50, mode={mode!r})
for _ in range(5):
    for _ in range(20):
        list(loader)
    gc.collect()
    print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    figures = [float(word) for word in done.stdout.split()]
    assert len(figures) == 5
    assert steady_growth(figures) < 4  # MiB in 20 epochs


@pytest.mark.process
@pytest.mark.parametrize("mode", MODES)
def test_the_interpreter_exits_in_the_middle_of_an_epoch(numbered_shards, mode):
    code = (
        f"from fdt_pipeline import FDTLoader\ni = iter(FDTLoader({str(numbered_shards)!r}, 8, mode={mode!r}))\nnext(i)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_plain_is_a_superposition_of_one():
    assert FDT(max_images=1, anchor="epoch") == PLAIN


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
        loader = FDTLoader(folder, 7, mode=mode, train=False, **PIXELS)
        images = torch.cat([images for images, _ in loader])
        lossy = encoding in ("jpg", "keep")
        assert (images - expected).abs().max() <= (2 if lossy and mode == "streaming" else 0)


@dataclass(frozen=True)
class Table:
    """Weights for sums of up to num_images, and no more."""

    num_images: int

    def weights(self, k):
        return [np.full(i, 1 / i) for i in range(1, self.num_images + 1)][k - 1]


@pytest.mark.parametrize("options", [{"mode": "resident"}, {"mode": "streaming", "mix_window": 46}])
@pytest.mark.parametrize("fdt", [FDT(series=Table(7)), FDT(series=Table(3), max_images=3)])
def test_a_series_need_have_no_weights_for_more_images_than_a_sum_can_have(numbered_shards, options, fdt):
    loader = FDTLoader(numbered_shards, 23, mix=fdt, **options)
    targets = [batch for _, batch in loader]
    assert max(int((target > 0).sum(1).max()) for target in targets) == fdt.series.num_images
    loader.load_state_dict(loader.state_dict())
