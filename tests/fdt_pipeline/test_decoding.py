"""The images of a batch before they are mixed: cropped, resized, and what a user's function makes of them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from nvidia.dali import Pipeline
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, resized_crop

from fdt_pipeline import RandomResizedCrop, ResizeCrop
from fdt_pipeline.definition.crops import draw_crops
from fdt_pipeline.definition.philox import Stream, random_words
from fdt_pipeline.loader import graphs
from fdt_pipeline.loader.decoding import Decoding
from fdt_pipeline.loader.preprocessing import fn
from fdt_pipeline.shards.codec import image_size
from tests.decoding import decoded
from tests.photographs import image_file, photograph

pytestmark = pytest.mark.dali
SIZES = [(375, 500), (500, 333), (256, 256), (300, 900), (700, 600), (100, 90), (60, 200), (257, 400), (9, 30)]
PHOTOS = [photograph(*size, seed) for seed, size in enumerate(SIZES)]


def files(form, **options):
    return [image_file(photo, form, **options) for photo in PHOTOS]


def pillow(file):
    return Image.open(io.BytesIO(file.data))


def mean_difference(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("of_tensors", [False, True])
def test_evaluation_is_torchvisions_resize_and_center_crop_within_two_gray_levels(of_tensors):
    jpegs = files("JPEG", quality=95)
    images = [pil_to_tensor(pillow(file)) if of_tensors else pillow(file) for file in jpegs]
    expected = [center_crop(resize(image, 256, antialias=True), 224) for image in images]
    expected = [np.asarray(image) if not of_tensors else image.permute(1, 2, 0).numpy() for image in expected]
    found = decoded(jpegs, Decoding(True, 3, crop=ResizeCrop(256, 224)), SIZES)
    assert mean_difference(found, expected).max() < 0.5  # the bound of the promise is 2; DALI rounds otherwise


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_random_crops_are_those_drawn_and_resized_as_torchvision_does(form):
    crop = RandomResizedCrop((96, 128))
    encoded = files(form)
    found = decoded(encoded, Decoding(True, 3, crop=crop), SIZES, seed=3, epoch=4)
    drawn = draw_crops(crop, 3, 4, np.arange(len(SIZES)), *np.array(SIZES).T)
    expected = [resized_crop(pillow(f), *part, (96, 128)) for f, part in zip(encoded, drawn.tolist(), strict=True)]
    assert mean_difference(found, expected).max() < 0.5


@pytest.mark.parametrize("crop", [RandomResizedCrop(48), ResizeCrop(50, (48, 40))])
def test_arrays_are_cropped_as_files_of_them_are(crop):
    of_files = decoded(files("PNG"), Decoding(True, 3, crop=crop), SIZES)
    np.testing.assert_array_equal(decoded(PHOTOS, Decoding(False, 3, crop=crop), SIZES), of_files)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_files_are_cropped_as_they_are_stored_whatever_their_exif_says(form, orientation):
    """As torchvision's loaders do it; sharding turns images upright."""
    files = [image_file(photo, form, orientation) for photo in PHOTOS]
    assert [image_size(file) for file in files] == SIZES
    stored = [np.asarray(pillow(file)) for file in files]
    for decoding in (Decoding(True, 3, crop=RandomResizedCrop(48)), Decoding(True, 3, crop=ResizeCrop(50, 48))):
        expected = decoded(stored, replace(decoding, is_encoded=False), SIZES)
        assert mean_difference(decoded(files, decoding, SIZES), expected).max() < 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 2, "quality": 30},
        {"exif": b"Exif\0\0II*\0" + b"x" * 60_000},
        {"exif": b"?"},
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_sizes_are_read_from_headers_of_all_kinds(form, options):
    assert image_size(image_file(PHOTOS[0], form, **options)) == SIZES[0]


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff", image_file(PHOTOS[0], "PNG")[:20].tobytes()])
def test_a_header_that_cannot_be_read_is_an_error(data):
    with pytest.raises(ValueError, match="its size cannot be read"):
        image_size(np.frombuffer(data, np.uint8))


def test_gray_files_are_cropped_in_gray():
    gray = [image_file(photo[..., 0], "PNG") for photo in PHOTOS]
    found = decoded(gray, Decoding(True, 1, crop=RandomResizedCrop(32)), SIZES)
    colored = decoded(
        [photo[..., :1].copy() for photo in PHOTOS], Decoding(False, 1, crop=RandomResizedCrop(32)), SIZES
    )
    np.testing.assert_array_equal(found, colored)


def brighter(images, random):
    return fn.color_twist(images, brightness=0.5 + random[0])


@pytest.mark.parametrize("crop", [RandomResizedCrop(32), ResizeCrop(40, 32)])
def test_an_image_depends_on_its_sample_alone_and_not_on_batch_or_threads(crop):
    decoding, encoded = Decoding(True, 3, crop=crop, preprocess=brighter), files("JPEG")
    samples = np.array([7, 2**31, 5, 400, 1, 2, 3, 12, 99])
    whole = decoded(encoded, decoding, SIZES, seed=9, epoch=1, samples=samples, threads=2)
    for order in ([3, 0], [8, 7, 6, 5, 4, 3, 2, 1, 0]):
        some = [encoded[i] for i in order], decoding, [SIZES[i] for i in order]
        np.testing.assert_array_equal(decoded(*some, seed=9, epoch=1, samples=samples[order]), whole[order])


def test_random_numbers_of_preprocess_are_words_of_the_sample():
    fed = Decoding(False, 3, preprocess=brighter).inputs(5, 6, np.array([8, 3]), None)
    words = [[random_words(5, Stream.PREPROCESS, 6, sample, block) for block in range(4)] for sample in (8, 3)]
    np.testing.assert_array_equal(fed["random"], np.reshape(words, (2, 16)) // 256 / 2**24)
    assert fed.keys() == {"random"}


def test_preprocess_works_on_what_is_cropped():
    crop = ResizeCrop(40, 32)
    plain = decoded(PHOTOS, Decoding(False, 3, crop=crop), SIZES)
    made = decoded(
        PHOTOS, Decoding(False, 3, crop=crop, preprocess=lambda images: fn.cast_like(255 - images, images)), SIZES
    )
    np.testing.assert_array_equal(made, 255 - plain)


def test_a_size_to_stretch_to_and_a_crop_are_refused_together():
    with pytest.raises(ValueError, match=r"size stretches whole images, augment=ResizeCrop.* leave one of them out"):
        Decoding(True, 3, (32, 32), ResizeCrop(40, 32))


@pytest.mark.parametrize("crop", [None, RandomResizedCrop(48), ResizeCrop(50, 48)])
def test_a_gpu_decodes_crops_and_resizes_files_itself(crop):
    """No GPU is needed to say where the operators of a graph are."""
    with Pipeline(batch_size=1, num_threads=1, device_id=None):
        decoding = Decoding(True, 3, size=None if crop else (48, 48), crop=crop)
        image = graphs.decode(fn.external_source(), decoding, fn.external_source(), device="gpu")
    decoder = image.source.inputs[0]
    assert (image.device, decoder.device) == ("gpu", "gpu")
    assert "device: mixed" in str(decoder.source.spec)
