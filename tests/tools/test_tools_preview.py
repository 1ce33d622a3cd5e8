"""`python -m tools preview`: the sheets show what the shards hold, whole and in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fdt_pipeline.definition.superposition import FDT, Pool, draw_plan, superpose_images
from fdt_pipeline.shards import load_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource, open_source
from fdt_pipeline.storage import open_folder

pytest.importorskip("matplotlib")
from tools import picking, preview
from tools.__main__ import VERBS, main
from tools.canvas import fitted, shortened, text_width, wrapped
from tools.contact_sheet import draw_contact_sheet
from tools.picking import Place, pick_places, read_images, read_labels
from tools.sheet_title import MARGIN, TITLE

LONG = ["great white shark, white shark, man-eater, man-eating shark", "n" * 300, "\u732b $x^2$ \\n \u00e9", "a"]


def colours(num_samples: int, num_classes: int, side: int = 32, channels: int = 3) -> ArraySource:
    """Every pixel of an image is 1 + its label, in the last channel; in the first it is the sample's number."""
    images = np.zeros((num_samples, side, side, channels), np.uint8)
    labels = np.arange(num_samples) % num_classes
    images[..., 0] = (np.arange(num_samples) % 251)[:, None, None]
    images[..., -1] = (1 + labels)[:, None, None]
    return ArraySource(images, labels)


def run(*arguments: object) -> int:
    return main(["preview", *map(str, arguments)])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("encoding", ["raw", "png", "webp"])
def test_each_class_has_a_row_of_its_samples_and_of_no_others(tmp_path: Path, encoding: str) -> None:
    source = colours(200, 5)
    write_shards(source, tmp_path / "set", encoding, samples_per_shard=20)
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 0
    page = pixels(tmp_path / "sheet.png")
    for label in range(5):
        row = page[TITLE + 101 * label : TITLE + 101 * label + 96]
        found = Counter(map(tuple, row[row[..., 1] == 0]))
        assert {int(blue) - 1 for _, _, blue in found} == {label}
        assert len(found) == 8, "eight samples, and all are different"
        assert set(found.values()) == {96 * 96}, "whole, sharp, and covered by nothing"


def test_samples_come_from_all_parts_of_the_set(tmp_path: Path) -> None:
    write_shards(colours(400, 4), tmp_path, samples_per_shard=20)
    manifest = read_manifest(tmp_path)
    places = pick_places(open_folder(tmp_path), manifest, range(4), 8, seed=0)
    for label, some in places.items():
        numbers = [place.number for place in some]
        assert len(set(numbers)) == 8
        assert np.diff(sorted(numbers)).max() <= 3
        assert max(numbers) - min(numbers) >= 16
        for place in some:
            assert read_labels(open_folder(tmp_path), manifest.shards[place.number])[place.position] == label


def test_a_rare_class_is_found_wherever_it_is(tmp_path: Path) -> None:
    labels = np.zeros(300, np.int64)
    labels[[17, 100, 250]] = 1
    write_shards(ArraySource(np.zeros((300, 2, 2, 1), np.uint8), labels), tmp_path, samples_per_shard=10)
    places = pick_places(open_folder(tmp_path), read_manifest(tmp_path), [0, 1], 8, seed=0)
    assert [len(places[0]), len(places[1])] == [8, 3]
    assert len(set(places[0])) == 8
    assert len(set(places[1])) == 3


def test_the_seed_decides_which(tmp_path: Path) -> None:
    write_shards(colours(500, 2), tmp_path / "set", samples_per_shard=50)
    sheets = []
    for number, seed in enumerate((0, 0, 1)):
        assert run(tmp_path / "set", "--out", tmp_path / f"{number}.png", "--seed", seed) == 0
        sheets.append((tmp_path / f"{number}.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_only_what_is_shown_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(colours(400, 4), tmp_path / "set", "png", samples_per_shard=50)
    calls = []
    decode = picking.decode
    monkeypatch.setattr(picking, "decode", lambda *arguments: calls.append(1) or decode(*arguments))
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 0
    assert len(calls) == 4 * 8


@pytest.mark.soak
@pytest.mark.parametrize(("num_classes", "shown"), [(1, 1), (20, 20), (21, 21), (100, 100), (101, 100), (250, 100)])
def test_up_to_100_classes_are_shown_and_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_classes: int, shown: int
) -> None:
    write_shards(colours(num_classes * 4, num_classes, side=8), tmp_path / "set")
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 0
    plural = "1 class" if shown == 1 else f"{shown} classes"
    rest = f" of {num_classes}" if shown < num_classes else ""
    assert f"{4 * shown} samples, {plural}{rest} of {tmp_path}/set" in capsys.readouterr().out
    page = pixels(tmp_path / "sheet.png")
    assert page.shape[1] < 2000
    assert page.shape[0] < 2000
    found = {int(blue) for blue in page[(page[..., 1] == 0) & (page[..., 2] > 0)][:, 2]}
    assert len(found) == shown


def test_nothing_lies_over_anything_else(tmp_path: Path) -> None:
    """Long names: between names and images, around the page and between rows all is white."""
    source = ArraySource(colours(40, 4).images, np.arange(40) % 4, LONG)
    write_shards(source, tmp_path / "set")
    folder = open_folder(tmp_path / "set")
    canvas, _ = draw_contact_sheet(folder, read_manifest(folder), 0)
    with open(tmp_path / "sheet.png", "wb") as file:
        canvas.write(file)
    page = pixels(tmp_path / "sheet.png")
    assert (page[:, : MARGIN - 2] == 255).all()
    assert (page[:, -MARGIN:] == 255).all()
    left = MARGIN + 200 + 12
    assert (page[TITLE:, left - 10 : left - 1] == 255).all()
    assert (page[TITLE - 10 : TITLE - 1] == 255).all()


def test_a_class_without_samples_says_so_and_gray_is_gray(tmp_path: Path) -> None:
    images = np.full((6, 28, 28, 1), 77, np.uint8)
    write_shards(ArraySource(images, [0, 0, 0, 2, 2, 2], ["a", "b", "c"], split="test"), tmp_path / "set")
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 0
    page = pixels(tmp_path / "sheet.png")
    rows = [page[TITLE + 89 * label : TITLE + 89 * label + 84] for label in range(3)]
    counts = [int((row == 77).all(axis=-1).sum()) for row in rows]
    assert counts[0] == counts[2] == 3 * 84 * 84
    assert counts[1] < 100
    assert (rows[1] < 200).any(), "there is text"


def test_mixed_sizes_keep_their_aspect(tmp_path: Path) -> None:
    """Files of 600 x 200 and of 5 x 10 pixels, in cells of 96."""
    for name, size in (("wide", (600, 200)), ("tall", (5, 10))):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", size, (0, 0, 250)).save(tmp_path / "images" / name / "0.png")
    write_shards(open_source(tmp_path / "images"), tmp_path / "set", "keep")
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 0
    page = pixels(tmp_path / "sheet.png")
    boxes = []
    for row in range(2):
        found = np.argwhere((page[TITLE + 101 * row : TITLE + 101 * row + 96] == (0, 0, 250)).all(axis=-1))
        boxes.append(tuple(np.ptp(found, axis=0) + 1))
    assert boxes == [(90, 45), (32, 96)]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 160))
def test_fitted_images_fit(height: int, width: int, side: int) -> None:
    image = fitted(np.zeros((height, width, 1), np.uint8), side, side)
    assert image.shape[2] == 3
    assert max(image.shape[:2]) <= side
    assert 2 * max(image.shape[:2]) > side


@pytest.mark.soak
@given(st.text(min_size=1, max_size=60), st.integers(30, 300), st.integers(1, 3))
def test_text_is_never_wider_than_its_place(text: str, width: int, lines: int) -> None:
    assert text_width(shortened(text, width, 14, True), 14, True) <= width
    found = wrapped(text, width, 14, True, lines)
    assert len(found) <= lines
    assert all(text_width(line, 14, True) <= width for line in found)


@pytest.mark.parametrize(("encoding", "channels"), [("raw", 1), ("png", 3)])
def test_superposed_outputs_are_those_of_the_definition(tmp_path: Path, encoding: str, channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, channels), np.uint8)
    write_shards(ArraySource(noise, np.arange(60) % 6), tmp_path / "set", encoding, samples_per_shard=20)
    assert run(tmp_path / "set", "--superpose", "--seed", 5, "--out", tmp_path / "sheet.png") == 0
    page = pixels(tmp_path / "sheet.png").astype(int)
    images, labels, _ = load_shards(tmp_path / "set")
    for index in (0, 1, 2):
        plan = draw_plan(5, 0, index, Pool(labels, 6), FDT())
        expected = fitted(np.rint(superpose_images(plan, images)).astype(np.uint8), 160, 160)
        x = MARGIN + index * (160 + 12 + 210 + 2 * MARGIN)
        got = page[TITLE : TITLE + 160, x : x + 160]
        assert np.abs(got - expected.astype(int)).max() <= 1, "the sum's order may differ by a rounding"


def test_a_folder_of_splits_shows_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("test", "train"):
        write_shards(colours(20, 2), tmp_path / "set" / split)
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 0
    assert f"of {tmp_path}/set/train, " in capsys.readouterr().out


def test_superposing_needs_one_size_and_two_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        Image.new("RGB", (20, 20 + number)).save(tmp_path / "images" / str(number) / "0.png")
    write_shards(open_source(tmp_path / "images"), tmp_path / "mixed", "png")
    write_shards(colours(5, 1), tmp_path / "one")
    for name, problem in (("mixed", "images differ in size"), ("one", "needs 2 or more of them, got 1")):
        assert run(tmp_path / name, "--superpose", "--out", tmp_path / "sheet.png") == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["set", "--out", "sheet.jpg"], "expected a name that ends in .png"),
        (["set", "--out", "nowhere/sheet.png"], "there is no folder nowhere"),
        (["set", "--out", "sheet.png", "--seed", "-1"], "--seed must be 0 or more"),
        (["nothing", "--out", "sheet.png"], "nothing: no such folder"),
    ],
)
def test_a_wrong_usage_is_told_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(colours(4, 2), tmp_path / "set")
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["set"]


def test_a_broken_image_is_named_and_the_old_sheet_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(colours(4, 2), tmp_path / "set", "png")
    tar = tmp_path / "set" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[520:560] = bytes(40)
    tar.write_bytes(data)
    (tmp_path / "sheet.png").write_text("old")
    assert run(tmp_path / "set", "--out", tmp_path / "sheet.png") == 2
    key = data[:8].decode()
    assert f"{tar}: sample {key}: broken png" in capsys.readouterr().err
    assert (tmp_path / "sheet.png").read_text() == "old"


def test_images_are_read_one_at_a_time(tmp_path: Path) -> None:
    write_shards(colours(4, 2), tmp_path)
    found = read_images(open_folder(tmp_path), read_manifest(tmp_path), [Place(0, 1), Place(0, 3)])
    assert next(found)[0] == Place(0, 1)
    found.close()  # type: ignore[attr-defined]


def test_without_matplotlib_there_is_one_line(tmp_path: Path) -> None:
    write_shards(colours(4, 2), tmp_path / "set")
    script = (
        "import sys; sys.modules['matplotlib'] = None; from tools.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "preview", tmp_path / "set", "--out", tmp_path / "sheet.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: pictures are drawn by matplotlib: pip install matplotlib")
    assert done.stderr.count("\n") == 1


def test_the_verb_is_there() -> None:
    assert preview in VERBS
