"""Every contender does the task: the same images, labels and mixing as all the others, in the form of a batch.

The images are numbered (tests/numbered.py), so what comes out tells which sample it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from fdt_pipeline.definition.series import Harmonic
from fdt_pipeline.definition.superposition import augment_image
from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tests.numbered import LABELS, NUM_SAMPLES, image_numbers, numbered_images
from tools.bench.contenders import ENTRIES, find_entry
from tools.bench.contenders.data_loader import draw_mixture, index_classes
from tools.bench.contenders.images import image_files, made_once
from tools.bench.contenders.libraries import Decode
from tools.bench.task import Contender, NotInstalledError, Task

pytest.importorskip("nvidia.dali")
pytestmark = [
    pytest.mark.dali,
    pytest.mark.peer,
    # Workers are forked, as PyTorch does unless it is told otherwise, beside the threads of DALI.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # What others' modules say of themselves and of each other.
    *(pytest.mark.filterwarnings(f"ignore:::{module}") for module in ("timm", "webdataset", "litdata", "streaming")),
]

NUM_CLASSES, BATCH, HEIGHT, WIDTH = 7, 40, 8, 6
IMAGES = numbered_images(shape=(HEIGHT, WIDTH, 3))
ALPHA = 1e-6  # every random draw here is seeded
LIBRARIES = {"timm": "timm", "webdataset": "webdataset", "litData": "litdata", "MosaicML": "streaming", "FFCV": "ffcv"}


def library(name: str) -> str:
    first = name.split()[0].rstrip(",")
    return LIBRARIES.get(first, "torchvision" if first == "DataLoader" else "nvidia.dali")


def contenders(*mixings: str) -> Any:
    """Those with one of the mixings, as test parameters; one whose library is not installed is skipped."""
    chosen = [entry.name for entry in ENTRIES if entry.mixing in mixings]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=_skip(library(name))) for name in chosen])


def _skip(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


@contextmanager
def made(name: str, task: Task) -> Iterator[Contender]:
    contender = find_entry(name).make(task)
    try:
        yield contender
    finally:
        contender.close()


def epoch(contender: Contender, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, targets) of all batches; copies, for a batch may be overwritten by a later one."""
    batches = [(images.clone(), targets.clone()) for images, targets in contender.epoch(number)]
    assert all(1 <= len(images) == len(targets) <= BATCH for images, targets in batches)
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)


def task(shards: Path, **changes: Any) -> Task:
    """Without augmentation; with mean 0 and std 1 pixels come out as they are."""
    plain = Task(
        shards, shards.with_name(f"{shards.name}-work"), read_manifest(shards), BATCH, 2, pad=0, flip=False,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contenders")


@pytest.fixture(scope="module", params=["raw", "png"])
def numbered(request: pytest.FixtureRequest, folder: Path) -> Path:
    """The numbered images, as arrays and as image files."""
    write_shards(ArraySource(IMAGES, LABELS), folder / request.param, request.param, samples_per_shard=60, seed=3)
    return folder / request.param


@pytest.fixture(scope="module", params=["raw", "png"])
def flat(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Flat images, 33 of each class, whose level is 10 (class + 1), as arrays and as image files."""
    labels = np.arange(231) % NUM_CLASSES
    images = np.broadcast_to(10 * (labels + 1).astype(np.uint8)[:, None, None, None], (231, HEIGHT, WIDTH, 3))
    shards = folder / f"flat-{request.param}"
    write_shards(ArraySource(images.copy(), labels), shards, request.param, samples_per_shard=60)
    return shards


def labels_of(targets: torch.Tensor) -> np.ndarray:
    """Of i64[n], or of one-hot rows f32[n NUM_CLASSES]."""
    if targets.ndim == 1:
        assert targets.dtype == torch.int64
        return targets.numpy()
    assert targets.dtype == torch.float32
    assert ((targets == 0) | (targets == 1)).all()
    return targets.argmax(1).numpy()


@contenders("none")
def test_every_image_comes_once_an_epoch_with_its_own_label_and_each_epoch_in_an_order_of_its_own(
    name: str, numbered: Path
) -> None:
    whole = NUM_SAMPLES // BATCH * BATCH
    orders = []
    with made(name, task(numbered)) as contender:
        for number in range(2):
            images, targets = epoch(contender, number)
            numbers = image_numbers(images)
            np.testing.assert_array_equal(images, IMAGES[numbers].transpose(0, 3, 1, 2).astype(np.float32))
            np.testing.assert_array_equal(labels_of(targets), LABELS[numbers])
            assert len(set(numbers)) == len(numbers) == (whole if name.startswith("timm") else NUM_SAMPLES)
            orders.append(numbers[:whole])
    assert (orders[0] == orders[1]).mean() < 0.2


@contenders("none")
def test_images_are_shifted_over_zeros_flipped_and_standardized(name: str, folder: Path) -> None:
    image = numbered_images(1, (HEIGHT, WIDTH, 3))[0]
    shards, pad = folder / "same", 2
    if not shards.exists():
        write_shards(ArraySource(np.stack([image] * 200), np.arange(200) % 2), shards, samples_per_shard=50)
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    with made(name, task(shards, pad=pad, flip=True, mean=mean, std=std)) as contender:
        images, _ = epoch(contender)
    pixels = (images * torch.tensor(std).reshape(1, 3, 1, 1) + torch.tensor(mean).reshape(1, 3, 1, 1)).round()
    seen = {bytes(each) for each in pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy().reshape(len(pixels), -1)}
    shifts = range(2 * pad + 1)
    possible = {
        augment_image(image, dy, dx, flip, pad).tobytes() for dy in shifts for dx in shifts for flip in (False, True)
    }
    assert seen <= possible
    assert len(seen) > 0.8 * len(possible)


@contenders("mixup", "fdt in the batch", "fdt")
def test_an_output_is_the_sum_that_its_target_says(name: str, flat: Path) -> None:
    with made(name, task(flat)) as contender:
        images, targets = epoch(contender)
    assert images.dtype == targets.dtype == torch.float32
    assert targets.shape == (len(images), NUM_CLASSES)
    assert (targets >= 0).all()
    if find_entry(name).mixing == "mixup":
        numbers = (targets > 0).sum(1)
        assert numbers.max() == 2
        assert (numbers == 2).float().mean() > 0.5
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    levels = targets @ (10.0 * torch.arange(1, NUM_CLASSES + 1))
    torch.testing.assert_close(images, levels[:, None, None, None].expand_as(images), rtol=0, atol=1e-3)


@contenders("fdt in the batch", "fdt")
def test_the_number_of_images_in_a_sum_is_uniform_and_their_weights_are_harmonic(name: str, flat: Path) -> None:
    with made(name, task(flat)) as contender:
        targets = torch.cat([epoch(contender, number)[1] for number in range(4)]).numpy()
    numbers = (targets > 0).sum(1)
    assert stats.chisquare(np.bincount(numbers, minlength=NUM_CLASSES + 1)[1:]).pvalue > ALPHA
    for number, target in zip(numbers, targets, strict=True):
        np.testing.assert_allclose(np.sort(target)[::-1][:number], Harmonic().weights(number), atol=1e-6)


def test_classes_are_drawn_in_the_order_of_uniform_images_among_the_classes_left() -> None:
    """Algorithm 2's law: class a first and then b with odds n_a / N * n_b / (N - n_a)."""
    torch.manual_seed(0)
    sizes, draws = np.array([1, 2, 5]), 20_000
    mixture = draw_mixture(index_classes(torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))), draws)
    first_two = [tuple(pair) for pair in mixture.classes[:, :2].tolist()]
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    expected = [draws * sizes[a] / 8 * sizes[b] / (8 - sizes[a]) for a, b in pairs]
    assert stats.chisquare([first_two.count(pair) for pair in pairs], expected).pvalue > ALPHA
    members = mixture.images[mixture.classes == 2]
    assert stats.chisquare(np.bincount(members, minlength=8)[3:]).pvalue > ALPHA


def test_ours_is_the_first_and_each_says_how_many_images_an_output_takes() -> None:
    """A sum of FDT takes half of all classes and one."""
    assert ENTRIES[0].name == "ours, resident, native, FDT"
    for entry in ENTRIES:
        assert entry.images_per_output(100) == {"none": 1.0, "mixup": 2.0}.get(entry.mixing, 50.5), entry.name


def test_an_image_is_decoded_in_each_form_in_which_a_library_stores_it(folder: Path) -> None:
    shards = folder / "decoded"
    write_shards(ArraySource(IMAGES, LABELS), shards, samples_per_shard=60)
    decode, image, file = Decode(task(shards)), IMAGES[7], BytesIO()
    Image.fromarray(image).save(file, "PNG")
    planes = torch.tensor(image).permute(2, 0, 1)
    for stored in (image, planes, Image.open(file), file.getvalue()):
        for sample in ((stored, 3), {"image": stored, "label": 3}):
            decoded, label = decode(sample)
            torch.testing.assert_close(decoded, planes.float())
            assert label == 3
    images, labels = decode.batch([{"image": file.getvalue(), "label": 2}, {"image": planes[:1], "label": 4}])
    torch.testing.assert_close(images[1], planes[:1].expand(3, -1, -1).float())
    assert labels.tolist() == [2, 4]


@pytest.mark.parametrize(
    "name", [entry.name for entry in ENTRIES if entry.name not in ("GPU, as airbench", "DataLoader, FDT over the set")]
)
def test_a_missing_library_is_named_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(ArraySource(IMAGES[:20], LABELS[:20]), tmp_path / "set", "png")
    missing = library(name)
    for module in [missing, *(loaded for loaded in sys.modules if loaded.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotInstalledError, match="pip install"):
        find_entry(name).make(task(tmp_path / "set"))


def test_images_of_many_sizes_are_resized_where_they_are_not_kept_in_memory(folder: Path) -> None:
    shards = folder / "sizes"
    write_shards(_OfManySizes(), shards, "png", samples_per_shard=10)
    for name in ("DALI, webdataset", "DataLoader, torchvision", "ours, streaming, native, no FDT"):
        with made(name, task(shards, size=(4, 4))) as contender:
            images, targets = epoch(contender)
        assert images.shape == (20, 3, 4, 4), name
        np.testing.assert_allclose(images.mean((1, 2, 3)), 10.0 * labels_of(targets), err_msg=name)
    for name in ("DALI, from memory", "ours, resident, native, no FDT"):
        with pytest.raises(ValueError, match="size"):
            find_entry(name).make(task(shards, size=(4, 4)))


class _OfManySizes(ArraySource):
    """Flat images, whose level is 10 times their label."""

    def __init__(self) -> None:
        super().__init__(np.zeros((20, 1, 1, 3), np.uint8), np.arange(20) % 5)

    shape = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return sample._replace(image=np.full((3 + index, 9 - index % 5, 3), 10 * sample.label, np.uint8))


def test_files_are_taken_out_of_the_shards_once_and_what_was_cut_short_is_made_again(tmp_path: Path) -> None:
    write_shards(ArraySource(IMAGES, LABELS), tmp_path / "set", "png", samples_per_shard=60)
    files = image_files(task(tmp_path / "set"))
    assert sorted(file.label for file in files) == sorted(LABELS.tolist())
    before = Path(files[0].path).stat().st_mtime_ns
    assert image_files(task(tmp_path / "set")) == files
    assert Path(files[0].path).stat().st_mtime_ns == before
    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "made", _cut_short)
    assert made_once(tmp_path / "made", lambda out: out.write_text("whole")).read_text() == "whole"
    assert made_once(tmp_path / "made", _cut_short).read_text() == "whole"


def _cut_short(out: Path) -> None:
    out.write_text("half")
    raise KeyboardInterrupt
