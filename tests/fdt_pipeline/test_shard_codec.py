"""Images to bytes and back; mean and standard deviation of their pixels."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fdt_pipeline.shards.codec import EXTENSIONS, decode, encode
from fdt_pipeline.shards.pixel_statistics import PixelStatistics

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


@pytest.mark.parametrize("encoding", ["raw", "png", "webp"])
@given(image=arrays(np.uint8, SHAPES))
def test_decoding_inverts_encoding(encoding, image):
    [extension] = EXTENSIONS[encoding]
    decoded = decode(encode(image, encoding), extension, image.shape[2])
    np.testing.assert_array_equal(decoded, image)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_jpg_keeps_the_shape_and_nearly_the_pixels(channels):
    ramp = np.arange(64 * 48 * channels).reshape(64, 48, channels) // (12 * channels)
    image = ramp.astype(np.uint8)
    decoded = decode(encode(image, "jpg"), "jpg", channels)
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() <= 4


def test_what_a_format_has_no_room_for_is_refused():
    with pytest.raises(ValueError, match=r"16384 x 1 pixels cannot be stored as webp"):
        encode(np.zeros((1, 16384, 3), np.uint8), "webp")
    with pytest.raises(ValueError, match=r"1 x 65536 pixels cannot be stored as jpg"):
        encode(np.zeros((65536, 1, 1), np.uint8), "jpg")


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@given(arrays(np.uint8, SHAPES))
def test_raw_is_the_npy_file_that_numpy_writes(image):
    assert encode(image, "raw") == npy(image)


def png(mode):
    file = io.BytesIO()
    Image.new(mode, (2, 2)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoding", "data", "message"),
    [
        ("raw", b"", "not an npy file of version 1.0"),
        ("raw", npy(IMAGE, (2, 0)), "not an npy file of version 1.0"),
        ("raw", npy(IMAGE.astype(np.int16)), "expected an npy header of uint8 HWC in C order"),
        ("raw", npy(np.asfortranarray(IMAGE)), "expected an npy header of uint8 HWC in C order"),
        ("raw", npy(IMAGE[0]), "expected an npy header of uint8 HWC in C order"),
        ("raw", encode(IMAGE, "raw")[:-1], "cannot reshape array of size 23"),
        ("png", b"", "broken png"),
        ("png", encode(IMAGE, "png")[:-30], "broken png"),
        ("png", png("P"), "expected a png of mode L or RGB, got P"),
        ("png", png("I;16"), "expected a png of mode L or RGB, got I;16"),
    ],
)
def test_other_bytes_are_refused(encoding, data, message):
    with pytest.raises(ValueError, match=message):
        decode(data, EXTENSIONS[encoding][0])


@given(
    position=st.integers(0, 10**6), value=st.integers(0, 255), encoding=st.sampled_from(["raw", "png", "webp", "jpg"])
)
def test_broken_bytes_raise_nothing_but_value_errors(position, value, encoding):
    data = bytearray(encode(IMAGE, encoding))
    data[position % len(data)] = value
    with contextlib.suppress(ValueError):
        assert decode(bytes(data), EXTENSIONS[encoding][0]).dtype == np.uint8


SAME_CHANNELS = st.lists(
    arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))), min_size=1, max_size=5
)


def gathered(images):
    statistics = PixelStatistics()
    for image in images:
        statistics.add(image)
    return statistics


@given(SAME_CHANNELS)
def test_mean_and_std_are_those_of_all_pixels_of_images_of_any_size_in_any_order(images):
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    forward, backward = gathered(images), gathered(images[::-1])
    np.testing.assert_allclose(forward.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(forward.std, pixels.std(0), rtol=1e-9, atol=1e-9)
    assert (forward.mean, forward.std) == (backward.mean, backward.std)
    counted = PixelStatistics()
    for image in images:
        counted.add(np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]))
    assert (counted.mean, counted.std) == (forward.mean, forward.std)


def test_a_change_of_channels_is_refused():
    with pytest.raises(ValueError, match="expected 3 channels as in the images before, got 1"):
        gathered([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 1), np.uint8)])
