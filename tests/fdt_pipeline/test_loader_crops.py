"""A loader of photographs: random crops in training, the middle in evaluation, a user's function in between."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, resize, resized_crop

from fdt_pipeline import FDT, Augment, FDTLoader, RandomResizedCrop, ResizeCrop, fdt_pipeline
from fdt_pipeline.cli import main
from fdt_pipeline.definition.crops import draw_crops
from fdt_pipeline.loader import reading
from fdt_pipeline.loader.preprocessing import fn, types
from fdt_pipeline.shards import ShardError, iterate_shards, read_manifest, write_shards
from fdt_pipeline.storage import open_folder
from tests.foreign_tars import label_of, levels, sample, write_tar
from tests.loading import PIXELS, assert_same, global_batches, joined, ranks
from tests.numbered import PlainSource
from tests.photographs import photograph

pytestmark = pytest.mark.dali
NUM = 48
SIZES = [(40 + 7 * i % 50, 30 + 11 * i % 60) for i in range(NUM)]
CROP = RandomResizedCrop((24, 32))
STILL = RandomResizedCrop((24, 32), flip=False)  # flips are drawn for each output, not for each sample


def brightened(images, random):
    if random[1] > 0.5:
        images = fn.flip(images, vertical=1)
    return fn.color_twist(images, brightness=0.5 + random[0])


def negative(images):
    return fn.cast_like(255 - images, images)


def made_float(images):
    return fn.cast(images, dtype=types.FLOAT)


@pytest.fixture(scope="module", params=["png", "raw"])
def photos(tmp_path_factory, request):
    """Folder of 48 photographs of as many sizes and 4 classes, in 4 shards."""
    folder = tmp_path_factory.mktemp("photos") / request.param
    images = [photograph(*size, seed) for seed, size in enumerate(SIZES)]
    write_shards(PlainSource(images, 4), folder, encoding=request.param, samples_per_shard=12, seed=2)
    return folder


@pytest.fixture(scope="module", params=["native", "torch"])
def engine(request):
    return request.param


def stored(folder):
    """Pillow's images, in the order of the set."""
    loaded = iterate_shards(folder, read_manifest(open_folder(folder)))
    return [Image.fromarray(image) for shard in loaded for image in shard.images]


def cropped(folder, seed, epoch):
    """u8[n h w c]: what torchvision makes of the crops of the samples, in the order of the set."""
    images = stored(folder)
    crops = draw_crops(STILL, seed, epoch, np.arange(NUM), *zip(*((i.height, i.width) for i in images), strict=True))
    parts = [resized_crop(image, *crop, STILL.size) for image, crop in zip(images, crops.tolist(), strict=True)]
    return np.stack([np.asarray(part) for part in parts])


def as_hwc(images):
    return images.permute(0, 2, 3, 1).numpy()


def as_set(batches):
    """The images of an epoch, whatever their order."""
    return sorted(image.numpy().tobytes() for image in joined(batches)[0])


def test_plain_training_shows_the_crop_of_every_sample_once(photos, engine):
    loader = FDTLoader(photos, 10, mix=None, augment=STILL, seed=5, engine=engine, **PIXELS)
    for epoch in range(2):
        shown, expected = as_hwc(joined(loader)[0]), cropped(photos, 5, epoch)
        distances = np.abs(shown[:, None] - expected.astype(np.float32)).mean(axis=(2, 3, 4))
        assert sorted(distances.argmin(axis=1)) == list(range(NUM))
        assert distances.min(axis=1).max() < 0.5
    assert loader.mode == "streaming"
    assert loader.shape == (3, 24, 32)


def test_half_of_the_crops_are_mirrored(photos, engine):
    options = {"mix": None, "engine": engine, **PIXELS}
    still, flipped = (joined(FDTLoader(photos, 10, augment=augment, **options))[0] for augment in (STILL, CROP))
    mirrored = (still.flip(-1) == flipped).flatten(1).all(1)
    assert ((still == flipped).flatten(1).all(1) ^ mirrored).all()
    assert 12 <= mirrored.sum() <= 36


@pytest.mark.parametrize(
    "options", [{"augment": STILL}, {"augment": STILL, "preprocess": brightened}], ids=["crop", "preprocess"]
)
def test_samples_are_the_same_on_any_number_of_ranks_and_in_batches_of_any_size(photos, options):
    options = {"mix": None, "seed": 3, "engine": "native", **PIXELS, **options}
    one = as_set(FDTLoader(photos, 12, num_threads=1, prefetch=0, **options))
    assert len(set(one)) == NUM
    assert as_set(FDTLoader(photos, 7, num_threads=3, **options)) == one
    for world_size in (2, 4):
        assert as_set(global_batches(ranks(photos, 12, world_size, **options))) == one


@pytest.mark.filterwarnings("ignore:a ring of")
@pytest.mark.parametrize("preprocess", [None, negative, brightened])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_resumed_run_goes_on_with_the_same_crops(photos, engine, preprocess, batch):
    options = {"mix": FDT(max_images=3), "augment": CROP, "preprocess": preprocess, "ring": 20, "engine": engine}
    whole = list(FDTLoader(photos, 10, **options))
    first, second = FDTLoader(photos, 10, **options), FDTLoader(photos, 10, **options)
    batches = iter(first)
    for _ in range(batch):
        next(batches)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert_same(list(second), whole[batch:])


@pytest.mark.filterwarnings("ignore:a ring of")
def test_both_engines_mix_the_same_crops(photos):
    options = {"mix": FDT(max_images=4), "augment": CROP, "preprocess": negative, "ring": 30, **PIXELS}
    native, torchs = (joined(FDTLoader(photos, 16, engine=engine, **options)) for engine in ("native", "torch"))
    torch.testing.assert_close(native, torchs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("crop", [RandomResizedCrop(6), ResizeCrop(7, 6)])
def test_foreign_tars_are_cropped_where_they_are(tmp_path, engine, crop):
    """Two tars of one name, in folders of their own; every image is flat, and shows its label."""
    for part in range(2):
        members = [member for number in range(20 * part, 20 * part + 20) for member in sample(number)]
        write_tar(tmp_path / f"part{part}" / "x.tar", members)
    assert (
        main(["index", *(str(tmp_path / f"part{part}" / "x.tar") for part in range(2)), "--out", str(tmp_path / "set")])
        == 0
    )
    images, targets = joined(FDTLoader(tmp_path / "set", 8, mix=None, augment=crop, engine=engine, **PIXELS))
    assert levels(images).tolist() == targets.argmax(1).tolist()
    assert sorted(levels(images)) == sorted(map(label_of, range(40)))


def test_evaluation_is_torchvisions_resize_and_center_crop(photos, engine):
    loader = FDTLoader(photos, 10, train=False, augment=ResizeCrop(40, (24, 32)), engine=engine, **PIXELS)
    expected = [np.asarray(center_crop(resize(image, 40), (24, 32))) for image in stored(photos)]
    assert np.abs(as_hwc(joined(loader)[0]) - np.stack(expected)).mean(axis=(1, 2, 3)).max() < 0.5


def test_preprocess_works_on_the_cropped_images(photos, engine):
    options = {"mix": None, "augment": STILL, "engine": engine, **PIXELS}
    plain, inverted = (joined(FDTLoader(photos, 10, preprocess=made, **options))[0] for made in (None, negative))
    assert torch.equal(inverted, 255 - plain)


def test_preprocess_alone_streams_images_of_one_size(numbered_shards):
    loader = FDTLoader(numbered_shards, 23, train=False, preprocess=negative, **PIXELS)
    assert loader.mode == "streaming"
    plain = joined(FDTLoader(numbered_shards, 23, train=False, **PIXELS))[0]
    assert torch.equal(joined(loader)[0], 255 - plain)


@pytest.mark.parametrize(
    "options", [{"augment": CROP}, {"augment": CROP, "preprocess": brightened}], ids=["crop", "preprocess"]
)
def test_dalis_iterators_get_the_loaders_crops(photos, options):
    dalis = {"batch_size": 12, "num_threads": 2, "device_id": None, "enable_conditionals": "preprocess" in options}
    pipeline = fdt_pipeline(photos, mix=None, plan_seed=9, normalize="imagenet", **dalis, **options)
    pipeline.build()
    loader = FDTLoader(photos, 12, mix=None, seed=9, ring=12, engine="native", normalize="imagenet", **options)
    made = [tuple(torch.from_numpy(field.as_array().copy()) for field in pipeline.run()) for _ in range(len(loader))]
    assert_same(made, list(loader))


def test_normalize_stands_for_imagenets_mean_and_std(photos):
    loader = FDTLoader(photos, 10, augment=CROP, normalize="imagenet")
    mean, std = (np.divide(of_loader, 255) for of_loader in (loader.mean, loader.std))
    np.testing.assert_allclose(mean, (0.485, 0.456, 0.406))
    np.testing.assert_allclose(std, (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"augment": RandomResizedCrop(24)}, r"augment is .*size=\(24, 32\).* there and .*size=\(24, 24\).* here"),
        ({"preprocess": negative}, r"preprocess is .*\.brightened' there and .*\.negative' here"),
        ({"preprocess": None}, r"preprocess is .*\.brightened' there and None here"),
        ({"normalize": "imagenet"}, "mean is "),
    ],
)
def test_a_state_names_crop_and_preprocess(photos, other, match):
    options = {"augment": CROP, "preprocess": brightened, "mix": None}
    state = FDTLoader(photos, 10, **options).state_dict()
    with pytest.raises(ValueError, match=match):
        FDTLoader(photos, 10, **{**options, **other}).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"augment": CROP, "mode": "resident"}, r"augment=RandomResizedCrop\(.*\) is for streaming"),
        ({"augment": Augment(), "preprocess": negative, "mode": "resident"}, "preprocess is for streaming"),
        ({"augment": CROP, "size": (24, 24)}, "size stretches whole images, .* leave one of them out"),
        ({"augment": CROP, "train": False}, r"leave augment out \(or pass a ResizeCrop\), got RandomResizedCrop"),
        ({"augment": CROP, "preprocess": made_float}, r"preprocess=.*\.made_float must give uint8"),
        ({"augment": CROP, "preprocess": 3}, "preprocess must be a function of DALI nodes, got 3"),
        ({"augment": CROP, "normalize": "imagenet", "mean": 117}, "normalize='imagenet' stands for a mean and a std"),
        ({"augment": CROP, "normalize": "imagenet", "std": 1}, "normalize='imagenet' stands for a mean and a std"),
        ({"augment": CROP, "normalize": "cifar"}, "normalize must be one of 'imagenet', got 'cifar'"),
        ({"augment": None}, r"different sizes: pass size=.* or augment=RandomResizedCrop\(size\)"),
    ],
)
def test_options_that_do_not_go_together_are_refused(photos, options, match):
    with pytest.raises(ValueError, match=match):
        FDTLoader(photos, 10, **options)


def test_the_pipeline_function_refuses_a_preprocess_that_changes_the_type(photos):
    with pytest.raises(ValueError, match=r"preprocess=.*\.made_float must give uint8"):
        fdt_pipeline(
            photos, batch_size=10, num_threads=1, device_id=None, mix=None, augment=CROP, preprocess=made_float
        )


def resized_now_and_then(images, random):
    """Not where random is 0 or almost 1, as it is when a function is tried."""
    is_wider = fn.cast((random[0] > 0.5) & (random[0] < 0.99), dtype=types.FLOAT)
    return fn.resize(images, resize_x=32 + is_wider, resize_y=24)


def test_a_preprocess_that_changes_the_shape_of_some_images_is_named(photos, engine):
    loader = FDTLoader(photos, 10, mix=None, augment=CROP, preprocess=resized_now_and_then, engine=engine)
    with pytest.raises(RuntimeError, match=r"preprocess=.*\.resized_now_and_then failed, or gave another shape"):
        list(loader)


@pytest.fixture
def unreadable(photos, monkeypatch):
    """Key of a sample whose size cannot be read."""
    find = reading.Chunk._size

    def size(chunk, number):
        if chunk.key(number) == "00000007":
            raise ValueError("its size cannot be read (a reason)")
        return find(chunk, number)

    monkeypatch.setattr(reading.Chunk, "_size", size)
    assert any(re.search("00000007", path.read_text()) for path in photos.glob("*.idx"))


@pytest.mark.usefixtures("unreadable")
def test_a_sample_whose_size_cannot_be_read_is_named_or_substituted(photos):
    options = {"mix": None, "augment": STILL, **PIXELS}
    with pytest.raises(ShardError, match=r"\.tar: sample 00000007: its size cannot be read \(a reason\)"):
        list(FDTLoader(photos, 10, **options))
    with pytest.warns(UserWarning, match="another sample takes the place of a bad one"):
        assert len(set(as_set(FDTLoader(photos, 12, on_bad="substitute", **options)))) == NUM - 1
