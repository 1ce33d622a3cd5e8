"""Shards are read, sample by sample and pixel by pixel, by programs that know nothing of this one."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import logging
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import Manifest, load_shards, webdataset_files, write_shards
from fdt_pipeline.shards.codec import EXTENSIONS
from fdt_pipeline.shards.index import parse_index
from fdt_pipeline.shards.staging import TIMM_INFO_NAME, timm_info
from fdt_pipeline.sources import ArraySource, Source, open_source
from tests.peers import peer

NUM_SAMPLES, NUM_CLASSES = 36, 4
ENCODINGS = tuple(EXTENSIONS)
ENCODED = tuple(encoding for encoding in ENCODINGS if encoding != "raw")


class Written(NamedTuple):
    """A set, and by key the images and labels of its source; of JPEG, what Pillow decodes."""

    folder: Path
    manifest: Manifest
    images: dict[str, np.ndarray]
    labels: dict[str, int]


def noise(channels: int) -> np.ndarray:
    """Smooth, so that JPEG keeps it, and different for every sample."""
    steps = np.linspace(0, 1, 24)
    slopes = np.random.default_rng(0).uniform(-100, 100, (NUM_SAMPLES, 2, channels))
    planes = slopes[:, 0, None, None] * steps[:, None, None] + slopes[:, 1, None, None] * steps[None, :, None]
    return np.clip(128 + planes, 0, 255).astype(np.uint8)


def image_folder(folder: Path, channels: int, some_gray: bool = False) -> Path:
    """jpg, png and webp files, whose names have blanks, dots and other alphabets in them. some_gray: among those in
    color, which cannot be kept."""
    for i, pixels in enumerate(noise(channels)):
        place = folder / f"class {i % NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        if some_gray and i % 4 == 0:
            image = image.convert("L")
        kinds = ("jpg", "png") if channels == 1 else ("jpg", "png", "webp")
        image.save(place / f"{i}.\u00fc \u65e5.{kinds[i % len(kinds)]}")
    return folder


def source_for(encoding: str, channels: int, folder: Path) -> Source:
    if encoding == "keep":
        return open_source(image_folder(folder, channels, some_gray=channels == 3))
    return ArraySource(noise(channels), np.arange(NUM_SAMPLES) % NUM_CLASSES)


@pytest.fixture
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    encoding, channels = request.param
    folder, source = tmp_path / "set", source_for(encoding, channels, tmp_path / "files")
    manifest = write_shards(source, folder, encoding, samples_per_shard=10)
    images, labels, keys = load_shards(folder)
    positions = [int(key[:8]) for key in keys]
    assert sorted(positions) == list(range(NUM_SAMPLES))
    assert labels.tolist() == [source.labels[i] for i in positions]
    if encoding != "jpg":  # which loses something
        images = np.stack([source[i].image for i in positions])
    return Written(
        folder, manifest, dict(zip(keys, images, strict=True)), dict(zip(keys, labels.tolist(), strict=True))
    )


def sets(encodings: tuple[str, ...]) -> pytest.MarkDecorator:
    pairs = [(encoding, channels) for encoding in encodings for channels in (1, 3)]
    ids = [f"{encoding}-{'gray' if channels == 1 else 'rgb'}" for encoding, channels in pairs]
    return pytest.mark.parametrize("written", pairs, ids=ids, indirect=True)


def tars(written: Written) -> list[str]:
    return [str(written.folder / shard.name) for shard in written.manifest.shards]


def check_same(written: Written, found: dict[str, tuple[np.ndarray, int]], tolerance: int = 0) -> None:
    """tolerance: in grey levels, for another decoder of JPEG than Pillow's."""
    assert sorted(found) == sorted(written.images)
    for key, (image, label) in found.items():
        assert label == written.labels[key], key
        assert image.shape == written.images[key].shape, key
        assert np.abs(image.astype(int) - written.images[key].astype(int)).max() <= tolerance, key


# webdataset


@pytest.fixture(autouse=True)
def nothing_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset, and timm through it, leave the files that they open to the garbage collector."""
    for name in ("webdataset.gopen", "webdataset.cache"):
        with suppress(ImportError):
            module = importlib.import_module(name)
            monkeypatch.setattr(
                module, "open", lambda path, *_, **__: io.BytesIO(Path(path).read_bytes()), raising=False
            )


@sets(ENCODINGS)
def test_webdataset_decodes_every_sample_with_its_label(written: Written) -> None:
    """Keys come from webdataset's own splitting of names."""
    wds = peer("webdataset", "test")
    form = "l8" if written.manifest.channels == 1 else "rgb8"
    found = {}
    for sample in wds.WebDataset(tars(written), shardshuffle=False).decode(form):
        [name] = sample.keys() & {"npy", "png", "webp", "jpg"}
        image = np.asarray(sample[name])
        found[sample["__key__"]] = (image if image.ndim == 3 else image[..., None], sample["cls"])
    check_same(written, found)


@sets(ENCODED)
def test_webdataset_makes_tuples_of_pil_images_of_any_of_the_extensions(written: Written) -> None:
    wds = peer("webdataset", "test")
    mode = "L" if written.manifest.channels == 1 else "RGB"
    dataset = wds.WebDataset(tars(written), shardshuffle=False).decode("pil").to_tuple("jpg;png;webp", "cls", "__key__")
    found = [(key, np.asarray(image.convert(mode)), label) for image, label, key in dataset]
    assert len(found) == NUM_SAMPLES
    check_same(written, {key: (image.reshape(*image.shape[:2], -1), label) for key, image, label in found})


# DALI


@pytest.mark.dali
@sets(ENCODINGS)
def test_dali_decodes_every_sample_through_our_index(written: Written) -> None:
    check_same(written, by_dali(written), tolerance=3 if written.manifest.encoding in ("jpg", "keep") else 0)


def by_dali(written: Written) -> dict[str, tuple[np.ndarray, int]]:
    dali = pytest.importorskip("nvidia.dali")
    kind = dali.types.GRAY if written.manifest.channels == 1 else dali.types.RGB
    is_raw = written.manifest.encoding == "raw"
    indexes = webdataset_files(written.folder)["index_paths"]

    @dali.pipeline_def(batch_size=NUM_SAMPLES, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        files, labels = dali.fn.readers.webdataset(
            **webdataset_files(written.folder), missing_component_behavior="error", name="reader"
        )
        return files if is_raw else dali.fn.decoders.image(files, output_type=kind), labels

    built = pipeline()
    built.build()
    assert built.epoch_size("reader") == NUM_SAMPLES
    images, labels = built.run()
    keys = [members[0].name.partition(".")[0] for index in indexes for members in parse_index(Path(index).read_text())]
    found = [np.load(io.BytesIO(images.at(i))) if is_raw else images.at(i) for i in range(NUM_SAMPLES)]
    return {key: (found[i], int(bytes(labels.at(i)))) for i, key in enumerate(keys)}


# timm


@pytest.fixture
def timm_data() -> Any:
    peer("webdataset", "test")
    return peer("timm.data")


def write_info(root: Path, **sets: Manifest) -> None:
    (root / TIMM_INFO_NAME).write_text(json.dumps(timm_info({name.strip("_"): found for name, found in sets.items()})))


@pytest.mark.peer
@sets(ENCODED)
def test_timm_reads_every_sample_once(written: Written, timm_data: Any) -> None:
    write_info(written.folder, _=written.manifest)
    mode = "L" if written.manifest.channels == 1 else "RGB"
    dataset = timm_data.create_dataset("wds/set", root=str(written.folder), split="train", input_img_mode=mode)
    assert len(dataset) == NUM_SAMPLES
    found = [(np.asarray(image), label) for image, label in dataset]
    expected = zip(written.images.values(), written.labels.values(), strict=True)
    assert len(found) == NUM_SAMPLES
    for (image, label), (pixels, true_label) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image if image.ndim == 3 else image[..., None], pixels)
        assert label == true_label


@pytest.mark.peer
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_training", [False, True])
def test_timms_loader_reads_splits_below_one_root(
    tmp_path: Path, timm_data: Any, is_training: bool, num_workers: int
) -> None:
    """Shards are dealt to its workers whole, so their number is a multiple of that of the workers."""
    manifests = {}
    for split, labels in (("train", np.arange(40) % 4), ("test", np.arange(20) % 4)):
        images = np.repeat(np.arange(len(labels), dtype=np.uint8), 24 * 24 * 3).reshape(-1, 24, 24, 3)
        source = ArraySource(images, labels, split=split)
        manifests[split] = write_shards(source, tmp_path / split, "png", samples_per_shard=10)
    write_info(tmp_path, **manifests)
    split, num_samples = ("train", 40) if is_training else ("test", 20)
    dataset = timm_data.create_dataset(
        "wds/set", root=str(tmp_path), split=split, is_training=is_training, batch_size=10
    )
    loader = timm_data.create_loader(
        dataset,
        input_size=(3, 24, 24),
        batch_size=10,
        is_training=is_training,
        no_aug=True,
        use_prefetcher=False,
        num_workers=num_workers,
        crop_pct=1.0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        persistent_workers=False,
    )
    seen = [
        (round(255 * float(image.max())), int(label))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(seen) == [(i, i % 4) for i in range(num_samples)]


@pytest.mark.peer
def test_timm_leaves_raw_samples_out_so_there_is_no_info_for_them(
    tmp_path: Path, timm_data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_shards(ArraySource(noise(3), np.arange(NUM_SAMPLES) % NUM_CLASSES), tmp_path / "raw")
    with pytest.raises(ValueError, match="timm reads jpg, png and webp, not raw: convert it"):
        timm_info({"": manifest})
    with caplog.at_level(logging.ERROR):
        split = f"shard-000000.tar|{NUM_SAMPLES}"
        dataset = timm_data.create_dataset("wds/raw", root=str(tmp_path / "raw"), split=split)
        assert list(dataset) == []


def test_info_names_splits_tars_and_lengths(tmp_path: Path) -> None:
    manifest = write_shards(ArraySource(noise(1), np.arange(NUM_SAMPLES) % 2), tmp_path, "png", samples_per_shard=20)
    assert timm_info({"a/val": manifest}) == {
        "splits": {
            "val": {
                "name": "val",
                "num_samples": 36,
                "filenames": ["a/val/shard-000000.tar", "a/val/shard-000001.tar"],
                "shard_lengths": [20, 16],
            }
        }
    }
    assert list(timm_info({"": manifest})["splits"]) == ["train"]
    with pytest.raises(ValueError, match="second set of the split 'val'"):
        timm_info({"a/val": manifest, "b/val": manifest})


# tar


@sets(ENCODINGS)
def test_tar_lists_and_unpacks_what_the_index_says(written: Written, tmp_path: Path) -> None:
    out = tmp_path / "unpacked"
    out.mkdir()
    seen: set[str] = set()
    for tar in map(Path, tars(written)):
        names = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True).stdout.splitlines()
        subprocess.run(["tar", "-xf", tar, "-C", out], check=True)
        data = tar.read_bytes()
        members = [member for sample in parse_index(tar.with_suffix(".idx").read_text()) for member in sample]
        assert names == [member.name for member in members]
        for member in members:
            content = data[member.offset : member.offset + member.size]
            assert sha256((out / member.name).read_bytes()) == sha256(content), member.name
        seen.update(names)
    assert sorted(path.name for path in out.iterdir()) == sorted(seen)
    for key, label in written.labels.items():
        assert (out / f"{key}.cls").read_text() == str(label)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
