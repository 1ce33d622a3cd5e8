"""`fdt-pipeline preview`: the sheets show what the shards hold, whole and in its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fdt_pipeline.cli.preview import CHARACTER, Entry, Samples, page, superposed
from fdt_pipeline.definition.mixing import FDT, CutMix, MixUp
from fdt_pipeline.definition.superposition import Pool, draw_plan, superpose_images, superpose_targets
from fdt_pipeline.shards import load_shards, read_manifest, write_shards
from fdt_pipeline.shards.conversion import OneShard
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.sources.image_pixels import resized
from fdt_pipeline.storage import open_folder
from tests.folders import names
from tests.numbered import MixedSizes

LONG = ["great white shark, white shark, man-eater, man-eating shark", "n" * 300, "\u732b $x^2$ \\n \u00e9", "a"]


def colours(num_samples, num_classes, side=32):
    """Every pixel of an image is 1 + its label, in the last channel; in the first it is the sample's number."""
    images = np.zeros((num_samples, side, side, 3), np.uint8)
    labels = np.arange(num_samples) % num_classes
    images[..., 0] = (np.arange(num_samples) % 251)[:, None, None]
    images[..., -1] = (1 + labels)[:, None, None]
    return ArraySource(images, labels, LONG if num_classes == len(LONG) else None)


def drawn(run, shards):
    """The pixels of the sheet, and what is printed."""
    done = run("preview", shards, "--out", shards.with_suffix(".png"))
    assert done.code == 0
    with Image.open(shards.with_suffix(".png")) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int), done.out


def samples_of(shards):
    return Samples(open_folder(shards), read_manifest(shards))


@pytest.mark.parametrize("encoding", ["raw", "png", "webp"])
def test_each_class_has_a_row_of_its_samples_and_nothing_lies_over_them(run, tmp_path, encoding):
    """Names are long: text is black, images have no green."""
    write_shards(colours(200, 4), tmp_path / "set", encoding, samples_per_shard=20)
    sheet, _ = drawn(run, tmp_path / "set")
    is_image = (sheet[..., 1] == 0) & (sheet[..., 2] > 0)
    places = {label: np.argwhere(is_image & (sheet[..., 2] == label + 1)) for label in range(4)}
    assert sum(map(len, places.values())) == is_image.sum()
    for label, found in places.items():
        assert len(found) == 8 * 96 * 96, "eight samples, whole and sharp"
        assert len(np.unique(sheet[tuple(found.T)][:, 0])) == 8, "all are different"
        assert label == 0 or found[:, 0].min() > places[label - 1][:, 0].max(), "a row a class"


@pytest.mark.soak
@pytest.mark.parametrize(("num_classes", "shown"), [(1, 1), (20, 20), (21, 21), (101, 100)])
def test_up_to_100_classes_are_shown_and_others_counted(run, tmp_path, num_classes, shown):
    write_shards(colours(num_classes * 4, num_classes, side=8), tmp_path / "set")
    sheet, printed = drawn(run, tmp_path / "set")
    assert f"{4 * shown} samples, {shown} of {num_classes} classes of {tmp_path}/set" in printed
    assert max(sheet.shape) < 2000
    assert len(np.unique(sheet[(sheet[..., 1] == 0) & (sheet[..., 2] > 0)][:, 2])) == shown


def test_samples_come_from_all_parts_of_the_set_and_a_rare_class_is_found_wherever_it_is(tmp_path):
    labels = np.arange(400) % 5
    labels[labels == 4] = 0
    labels[[17, 100, 250]] = 4
    write_shards(ArraySource(np.zeros((400, 2, 2, 1), np.uint8), labels), tmp_path, samples_per_shard=20)
    samples = samples_of(tmp_path)
    picked = samples.pick(range(5), 8, seed=0)
    assert [len(set(places)) for places in picked.values()] == [8, 8, 8, 8, 3]
    for label, places in picked.items():
        assert all(samples.labels(number)[position] == label for number, position in places)
        assert label == 4 or len({number for number, _ in places}) >= 4


def test_only_what_is_shown_is_decoded_and_the_seed_decides_what(run, tmp_path, monkeypatch):
    write_shards(colours(400, 5), tmp_path / "set", "png", samples_per_shard=50)
    decoded, read, sheets = [], OneShard.__getitem__, []
    monkeypatch.setattr(OneShard, "__getitem__", lambda *arguments: decoded.append(1) or read(*arguments))
    for seed in (0, 0, 1):
        assert run("preview", tmp_path / "set", "--out", tmp_path / "sheet.png", "--seed", seed).code == 0
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert len(decoded) == 3 * 5 * 8


def test_a_class_without_samples_says_so_and_gray_is_gray(run, tmp_path):
    images = np.full((6, 28, 28, 1), 77, np.uint8)
    write_shards(ArraySource(images, [0, 0, 0, 2, 2, 2], ["a", "b", "c"], split="test"), tmp_path / "set")
    sheet, _ = drawn(run, tmp_path / "set")
    gray = (sheet == 77).all(-1)
    assert 0 <= gray.sum() - 6 * 84 * 84 < 50, "text has a few gray pixels"
    rows = np.flatnonzero(gray.sum(1) > 84)
    gap = np.flatnonzero(np.diff(rows) > 20)
    between = sheet[rows[gap[0]] + 10 : rows[gap[0] + 1] - 10]
    assert (between[:, np.flatnonzero(gray.any(0)).min() :] < 200).any(), "there is text"


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 160), st.text(min_size=1, max_size=60))
def test_images_keep_their_aspect_and_fill_a_side_and_text_is_never_wider_than_its_place(height, width, side, text):
    """An entry whose text has room for 20 characters, after its image and a space."""
    figure = page([], [Entry([np.zeros((height, width, 1), np.uint8)], text)], 1, side, 20)
    [axes] = figure.axes
    [image] = axes.images
    left, right, bottom, top = image.get_extent()
    assert side / 2 < max(right - left, bottom - top) <= side + 1e-9
    assert (right - left) * height == pytest.approx((bottom - top) * width)
    place = axes.texts[-1].get_window_extent()
    assert left + side < place.x0
    assert place.x1 <= left + side + 22 * CHARACTER + 1


@pytest.mark.parametrize(("encoding", "channels"), [("raw", 1), ("png", 3)])
@pytest.mark.parametrize("mix", [FDT(), MixUp(1.0, anchor="random"), CutMix(1.0, anchor="random")], ids=repr)
def test_superposed_outputs_are_those_of_the_definition(tmp_path, encoding, channels, mix):
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, channels), np.uint8)
    write_shards(ArraySource(noise, np.arange(60) % 6), tmp_path / "set", encoding, samples_per_shard=20)
    images, labels, _ = load_shards(tmp_path / "set")
    for index, (image, target, k) in enumerate(superposed(samples_of(tmp_path / "set"), mix, 12, 5)):
        plan = draw_plan(5, 0, index, Pool(labels, 6), mix, size=(32, 32))
        assert k == len(plan.images)
        assert np.abs(image - superpose_images(plan, images)).max() <= 0.5 + 1e-6
        np.testing.assert_array_equal(target, superpose_targets(plan, 6))


@pytest.mark.parametrize("mix", ["fdt", "mixup", "cutmix"])
def test_images_of_different_sizes_are_mixed_at_224_pixels(run, here, mix):
    assert run("preview", "mixed", "--out", "sheet.png", "--superpose", mix).code == 0
    samples = samples_of(here / "mixed")
    first, *_ = superposed(samples, FDT(max_images=1), 1, 0)
    assert first[0].shape == (224, 224, samples.manifest.channels)
    [image] = draw_plan(0, 0, 0, Pool(samples.labels(0), len(samples.manifest.classes)), FDT(max_images=1)).images
    np.testing.assert_array_equal(first[0], resized(samples.image((0, int(image))), 224))


def test_a_folder_of_splits_shows_train(run, tmp_path):
    for split in ("test", "train"):
        write_shards(colours(20, 2), tmp_path / "set" / split)
    for options in ([], ["--superpose"], ["--superpose", "cutmix"]):
        done = run("preview", tmp_path / "set", "--out", tmp_path / "sheet.png", *options)
        assert done.out.endswith(f"of {tmp_path}/set/train\n")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with sets: a good one, one of mixed sizes, and one with a single class."""
    write_shards(MixedSizes(), tmp_path / "mixed", "png")
    write_shards(colours(5, 1), tmp_path / "one")
    write_shards(colours(6, 2), tmp_path / "set", "png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("set --out sheet.jpg", "expected a name that ends in .png"),
        ("set --out nowhere/sheet.png", "there is no folder nowhere"),
        ("set --out sheet.png --seed -1", "--seed must be 0 or more"),
        ("nothing --out sheet.png", "nothing: no such folder"),
        ("one --out sheet.png --superpose", "needs 2 or more of them, got 1"),
    ],
)
def test_a_wrong_usage_is_one_line(run, here, arguments, problem):
    done = run("preview", *arguments.split())
    assert done.code == 2
    [line] = done.err.splitlines()
    assert problem in line
    assert names(here) == ["mixed", "one", "set"]


def test_a_broken_image_is_named_and_the_old_sheet_stays(run, here):
    tar = here / "set" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[520:560] = bytes(40)
    tar.write_bytes(data)
    (here / "sheet.png").write_text("old")
    broken = f"set/shard-000000.tar: sample {data[:8].decode()}: broken png"
    assert broken in run("preview", "set", "--out", "sheet.png").err
    assert (here / "sheet.png").read_text() == "old"
