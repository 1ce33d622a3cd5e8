"""Shards are read, sample by sample and pixel by pixel, by programs that know nothing of this one."""

import importlib
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import Manifest, load_shards, webdataset_files, write_shards
from fdt_pipeline.shards.codec import EXTENSIONS
from fdt_pipeline.shards.manifest import TIMM_INFO_NAME, timm_info
from fdt_pipeline.sources import ArraySource, open_source
from tests.folders import parse_index
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


def noise(channels):
    """Smooth, so that JPEG keeps it, and different for every sample."""
    steps = np.linspace(0, 1, 24)
    slopes = np.random.default_rng(0).uniform(-100, 100, (NUM_SAMPLES, 2, channels))
    planes = slopes[:, 0, None, None] * steps[:, None, None] + slopes[:, 1, None, None] * steps[None, :, None]
    return np.clip(128 + planes, 0, 255).astype(np.uint8)


def image_folder(folder, channels, some_gray=False):
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


def source_for(encoding, channels, folder):
    if encoding == "keep":
        return open_source(image_folder(folder, channels, some_gray=channels == 3))
    return ArraySource(noise(channels), np.arange(NUM_SAMPLES) % NUM_CLASSES)


@pytest.fixture
def written(request, tmp_path):
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


def sets(encodings):
    pairs = [(encoding, channels) for encoding in encodings for channels in (1, 3)]
    ids = [f"{encoding}-{'gray' if channels == 1 else 'rgb'}" for encoding, channels in pairs]
    return pytest.mark.parametrize("written", pairs, ids=ids, indirect=True)


def tars(written):
    return [str(written.folder / shard.name) for shard in written.manifest.shards]


def check_same(written, found, tolerance=0):
    """tolerance: in grey levels, for another decoder of JPEG than Pillow's."""
    assert sorted(found) == sorted(written.images)
    for key, (image, label) in found.items():
        assert label == written.labels[key], key
        assert image.shape == written.images[key].shape, key
        assert np.abs(image.astype(int) - written.images[key].astype(int)).max() <= tolerance, key


@pytest.fixture(autouse=True)
def nothing_to_close(monkeypatch):
    """webdataset, and timm through it, leave the files that they open to the garbage collector."""
    for name in ("webdataset.gopen", "webdataset.cache"):
        with suppress(ImportError):
            module = importlib.import_module(name)
            monkeypatch.setattr(
                module, "open", lambda path, *_, **__: io.BytesIO(Path(path).read_bytes()), raising=False
            )


@sets(ENCODINGS)
def test_webdataset_decodes_every_sample_with_its_label(written):
    """Keys come from webdataset's own splitting of names."""
    wds = peer("webdataset", "test")
    form = "l8" if written.manifest.channels == 1 else "rgb8"
    found = {}
    for sample in wds.WebDataset(tars(written), shardshuffle=False).decode(form):
        [name] = sample.keys() & {"npy", "png", "webp", "jpg"}
        image = np.asarray(sample[name])
        found[sample["__key__"]] = (image if image.ndim == 3 else image[..., None], sample["cls"])
    check_same(written, found)


@pytest.mark.dali
@sets(ENCODINGS)
def test_dali_decodes_every_sample_through_our_index(written):
    dali = pytest.importorskip("nvidia.dali")
    kind = dali.types.GRAY if written.manifest.channels == 1 else dali.types.RGB
    is_raw = written.manifest.encoding == "raw"
    files = webdataset_files(written.folder)

    @dali.pipeline_def(batch_size=NUM_SAMPLES, num_threads=1, device_id=None)
    def pipeline():
        images, labels = dali.fn.readers.webdataset(**files, missing_component_behavior="error", name="reader")
        return images if is_raw else dali.fn.decoders.image(images, output_type=kind), labels

    built = pipeline()
    built.build()
    assert built.epoch_size("reader") == NUM_SAMPLES
    images, labels = built.run()
    indexes = [parse_index(Path(path).read_text()) for path in files["index_paths"]]
    keys = [members[0].name.partition(".")[0] for index in indexes for members in index]
    found = [np.load(io.BytesIO(images.at(i))) if is_raw else images.at(i) for i in range(NUM_SAMPLES)]
    by_key = {key: (found[i], int(bytes(labels.at(i)))) for i, key in enumerate(keys)}
    check_same(written, by_key, tolerance=3 if written.manifest.encoding in ("jpg", "keep") else 0)


@pytest.fixture
def timm_data():
    peer("webdataset", "test")
    return peer("timm.data")


def write_info(root, **sets):
    (root / TIMM_INFO_NAME).write_text(json.dumps(timm_info({name.strip("_"): found for name, found in sets.items()})))


@pytest.mark.peer
@sets(ENCODED)
def test_timm_reads_every_sample_once(written, timm_data):
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
@pytest.mark.parametrize(("split", "num_samples", "num_workers"), [("train", 40, 2), ("test", 20, 0)])
def test_timms_loader_reads_splits_below_one_root(tmp_path, timm_data, split, num_samples, num_workers):
    """Shards are dealt to its workers whole, so their number is a multiple of that of the workers."""
    manifests = {}
    for name, count in (("train", 40), ("test", 20)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 24 * 24 * 3).reshape(-1, 24, 24, 3)
        source = ArraySource(images, np.arange(count) % 4, split=name)
        manifests[name] = write_shards(source, tmp_path / name, "png", samples_per_shard=10)
    write_info(tmp_path, **manifests)
    is_training = split == "train"
    dataset = timm_data.create_dataset(
        "wds/set", root=str(tmp_path), split=split, is_training=is_training, batch_size=10
    )
    as_it_is = {"no_aug": True, "crop_pct": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    workers = {"num_workers": num_workers, "persistent_workers": False, "use_prefetcher": False}
    loader = timm_data.create_loader(dataset, (3, 24, 24), 10, is_training=is_training, **as_it_is, **workers)
    pairs = ((images, labels) for batch in loader for images, labels in zip(*batch, strict=True))
    seen = [(round(255 * float(image.max())), int(label)) for image, label in pairs]
    assert sorted(seen) == [(i, i % 4) for i in range(num_samples)]


def test_info_names_splits_tars_and_lengths(tmp_path):
    manifest = write_shards(ArraySource(noise(1), np.arange(NUM_SAMPLES) % 2), tmp_path, "png", samples_per_shard=20)
    filenames = ["a/val/shard-000000.tar", "a/val/shard-000001.tar"]
    val = {"name": "val", "num_samples": 36, "filenames": filenames, "shard_lengths": [20, 16]}
    assert timm_info({"a/val": manifest}) == {"splits": {"val": val}}
    assert list(timm_info({"": manifest})["splits"]) == ["train"]
    with pytest.raises(ValueError, match="second set of the split 'val'"):
        timm_info({"a/val": manifest, "b/val": manifest})
    raw = write_shards(ArraySource(noise(1), np.arange(NUM_SAMPLES) % 2), tmp_path / "raw")
    with pytest.raises(ValueError, match="timm reads jpg, png and webp, not raw: convert it"):
        timm_info({"": raw})
