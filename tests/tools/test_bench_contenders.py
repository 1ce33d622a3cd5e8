"""Every contender does the task: the same images, labels and mixing as all the others, in the form of a batch."""

import pickle
import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms.v2 import RandomResizedCrop

from fdt_pipeline.definition.series import Harmonic
from fdt_pipeline.definition.superposition import augment_image
from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tests.numbered import LABELS, MixedSizes, numbered_images
from tools.bench.checks import check
from tools.bench.contenders import ENTRIES, data_loader, find_entry
from tools.bench.contenders.data_loader import draw_mixture, index_classes
from tools.bench.contenders.images import made_once
from tools.bench.contenders.libraries import Decode, pair_targets
from tools.bench.subsets import write_check_sets
from tools.bench.task import MIXING, NotInstalledError, Task

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
LAW = (0.08, 1.0), (3 / 4, 4 / 3)  # scale and ratio: the defaults of all
IN_MEMORY = ("DALI, from memory", "GPU, as airbench", "ours, resident, native, no FDT")
ALPHA = 1e-6  # every random draw here is seeded
LIBRARIES = {"timm": "timm", "webdataset": "webdataset", "litData": "litdata", "MosaicML": "streaming", "FFCV": "ffcv"}


def library(name):
    first = name.split()[0].rstrip(",")
    return LIBRARIES.get(first, "torchvision" if first == "DataLoader" else "nvidia.dali")


def contenders(*mixings):
    """Those with one of the mixings, as test parameters; one whose library is not installed is skipped."""

    def needs(module):
        return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")

    names = [entry.name for entry in ENTRIES if entry.mixing in mixings]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=needs(library(name))) for name in names])


def made(name, task):
    return closing(find_entry(name).make(task))


def epoch(contender, number=0):
    """(images, targets) of all batches; copies, for a batch may be overwritten by a later one."""
    batches = [(images.clone(), targets.clone()) for images, targets in contender.epoch(number)]
    assert all(1 <= len(images) == len(targets) <= BATCH for images, targets in batches)
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)


def task(shards, **changes):
    """Without augmentation; with mean 0 and std 1 pixels come out as they are."""
    plain = Task(
        shards, shards.with_name(f"{shards.name}-work"), read_manifest(shards), BATCH, 2, pad=0, flip=False,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("contenders")


@pytest.fixture(scope="module", params=["raw", "png"])
def numbered(request, tmp_path_factory):
    """The numbered images, as arrays and as image files. In a folder of its own each time: a worker that takes over
    tests of another one may make the same set again."""
    folder = tmp_path_factory.mktemp("numbered") / request.param
    write_shards(ArraySource(IMAGES, LABELS), folder, request.param, samples_per_shard=60, seed=3)
    return folder


@contenders(*MIXING)
def test_every_contender_passes_the_checks(name, numbered):
    """Each image once an epoch with its own label, or mixed as its target says; each epoch in an order of its own."""
    check(find_entry(name), task(numbered), write_check_sets(task(numbered)))


def test_one_that_crops_is_checked_on_whole_images(folder):
    shards = folder / "files"
    write_shards(ArraySource(IMAGES, LABELS), shards, "png", samples_per_shard=60)
    asked = task(shards, size=(HEIGHT, WIDTH), crop=True, flip=True)
    check(find_entry("DataLoader, torchvision"), asked, write_check_sets(asked))


@pytest.mark.parametrize("name", [entry.name for entry in data_loader.ENTRIES if not entry.needs_gpu])
def test_what_a_data_loader_sends_to_its_workers_can_be_pickled(name, numbered):
    """In a race its process is spawned, and so are its workers; here they are forked."""
    with made(name, task(numbered)) as contender:
        loader = contender._loader
        dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    images, targets = collate([dataset[i] for i in range(4)])
    assert len(images) == len(targets) == 4


@contenders("none")
def test_images_are_shifted_over_zeros_flipped_and_standardized(name, folder):
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


@contenders(*[mixing for mixing in MIXING if mixing != "none"])
def test_mixed_images_are_shifted_and_flipped_as_whole_ones_are(name, folder):
    """All images are one image, so that, however they are mixed, an output is on average that of all its shifts and
    flips; and in one mixture several of them are seen."""
    shards, pad, [image] = folder / "one", 2, numbered_images(1, (HEIGHT, WIDTH, 3))
    if not shards.exists():
        write_shards(ArraySource(np.stack([image] * 400), np.arange(400) % 4), shards, samples_per_shard=100)
    with made(name, task(shards, pad=pad, flip=True)) as contender:
        images = torch.cat([epoch(contender, number)[0] for number in range(3)]).numpy().transpose(0, 2, 3, 1)
    shifts = range(2 * pad + 1)
    moved = [augment_image(image, dy, dx, flip, pad) for dy in shifts for dx in shifts for flip in (False, True)]
    error = images.std(0) / np.sqrt(len(images)) + 1e-3
    assert (np.abs(images.mean(0) - np.mean(moved, 0)) < 5 * error).all()
    whole = {some.tobytes() for some in np.array(moved, np.float32)}
    assert np.mean([some.tobytes() in whole for some in images.astype(np.float32)]) < 0.7


@contenders("fdt in the batch", "fdt in a ring", "fdt")
def test_the_number_of_images_in_a_sum_is_uniform_and_their_weights_are_harmonic(name, folder):
    """33 images of each class."""
    shards, labels = folder / "even", np.arange(231) % NUM_CLASSES
    if not shards.exists():
        write_shards(ArraySource(numbered_images(231, (HEIGHT, WIDTH, 3)), labels), shards, samples_per_shard=60)
    with made(name, task(shards)) as contender:
        targets = torch.cat([epoch(contender, number)[1] for number in range(4)]).numpy()
    numbers = (targets > 0).sum(1)
    most = find_entry(name).max_images or NUM_CLASSES
    assert stats.chisquare(np.bincount(numbers, minlength=most + 1)[1:]).pvalue > ALPHA
    for number, target in zip(numbers, targets, strict=True):
        np.testing.assert_allclose(np.sort(target)[::-1][:number], Harmonic().weights(number), atol=1e-6)


def test_classes_are_drawn_in_the_order_of_uniform_images_among_the_classes_left():
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


def test_two_labels_and_a_weight_become_a_target_and_add_up_where_they_are_one_class():
    pairs = torch.tensor([[0, 2, 0.25], [1, 1, 0.25]])
    assert pair_targets(pairs, 3).tolist() == [[0.25, 0, 0.75], [0, 1, 0]]


def test_an_image_is_decoded_in_each_form_in_which_a_library_stores_it(numbered):
    """Gray among color too. Batches are pairs of images and labels."""
    planes, file = torch.tensor(IMAGES[7]).permute(2, 0, 1), BytesIO()
    Image.fromarray(IMAGES[7]).save(file, "PNG")
    stored = (IMAGES[7], planes, Image.open(file), file.getvalue())
    samples = [
        *((image, 3) for image in stored),
        *({"image": image, "label": 3} for image in (*stored[1:], planes[:1])),
    ]
    images, labels = Decode(task(numbered)).batch(samples)
    torch.testing.assert_close(images[:-1], planes.float().expand(7, -1, -1, -1))
    torch.testing.assert_close(images[-1], planes[:1].float().expand(3, -1, -1))
    assert labels.tolist() == [3] * 8


@pytest.mark.parametrize(
    "name", [entry.name for entry in ENTRIES if entry.name not in ("GPU, as airbench", "DataLoader, FDT over the set")]
)
def test_a_missing_library_is_named_with_what_to_install(name, tmp_path, monkeypatch):
    write_shards(ArraySource(IMAGES[:20], LABELS[:20]), tmp_path / "set", "png")
    missing = library(name)
    for module in [missing, *(loaded for loaded in sys.modules if loaded.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotInstalledError, match="pip install"):
        find_entry(name).make(task(tmp_path / "set"))


def test_images_of_many_sizes_are_resized_where_they_are_not_kept_in_memory(folder):
    shards = folder / "sizes"
    write_shards(MixedSizes(), shards, "png", samples_per_shard=10)
    for name in ("DALI, webdataset", "DataLoader, torchvision", "ours, streaming, native, no FDT"):
        with made(name, task(shards, size=(4, 4))) as contender:
            images, targets = epoch(contender)
        assert images.shape == (20, 3, 4, 4), name
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        np.testing.assert_allclose(images.mean((1, 2, 3)), 10.0 * labels, err_msg=name)
    for name in ("DALI, from memory", "ours, resident, native, no FDT"):
        with pytest.raises(ValueError, match="size"):
            find_entry(name).make(task(shards, size=(4, 4)))


@contenders("none")
def test_random_resized_crops_have_torchvisions_law(name, folder):
    """Red grows by 1 from left to right and green from top to bottom, so that an output tells its crop."""
    h, w, side = 120, 160, 16
    shards = folder / "ramps"
    if not shards.exists():
        red, green = np.meshgrid(np.arange(w), np.arange(h))
        ramp = np.stack([red, green, green], axis=-1).astype(np.uint8)
        write_shards(ArraySource(np.stack([ramp] * 800), np.arange(800) % 2), shards, "png", samples_per_shard=200)
    asked = task(shards, size=(side, side), crop=True, flip=True)
    if name in IN_MEMORY:
        with pytest.raises(ValueError, match="size"):
            find_entry(name).make(asked)
        return
    with made(name, asked) as contender:
        images = torch.cat([epoch(contender, number)[0] for number in range(5)])
    across, down = images[:, 0].mean(1), images[:, 1].mean(2)  # [n side]: the outer pixels are side - 1 apart
    width, height = ((edge[:, -1] - edge[:, 0]).numpy() * side / (side - 1) for edge in (across, down))
    assert stats.binomtest(int((width < 0).sum()), len(width)).pvalue > ALPHA, "half of them are flipped"
    torch.manual_seed(0)
    drawn = np.array([RandomResizedCrop.get_params(torch.empty(3, h, w), *LAW)[2:] for _ in range(20_000)], float)
    for found, expected in ((abs(width) * height, drawn.prod(1)), (abs(width) / height, drawn[:, 1] / drawn[:, 0])):
        assert stats.ks_2samp(found, expected).pvalue > ALPHA
    middles = down.mean(1).numpy()  # of crops of half the height or less, which are free to move
    assert middles[height < h / 2].std() > h / 8


def test_what_was_made_is_kept_and_what_was_cut_short_is_made_again(tmp_path):
    def cut_short(out):
        out.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "made", cut_short)
    assert made_once(tmp_path / "made", lambda out: out.write_text("whole")).read_text() == "whole"
    assert made_once(tmp_path / "made", cut_short).read_text() == "whole"
