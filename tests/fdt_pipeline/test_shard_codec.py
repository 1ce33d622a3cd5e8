"""Images to bytes and back."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fdt_pipeline.shards.codec import decode, encode

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


@pytest.mark.parametrize("encoding", ["raw", "png"])
@given(image=arrays(np.uint8, SHAPES))
def test_decoding_inverts_encoding(encoding: str, image: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encode(image, encoding), encoding), image)


@given(arrays(np.uint8, SHAPES))
def test_raw_is_the_npy_file_that_numpy_writes(image: np.ndarray) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, image, version=(1, 0))
    assert encode(image, "raw") == file.getvalue()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_mode_follows_the_channels(channels: int, mode: str) -> None:
    assert Image.open(io.BytesIO(encode(IMAGE[..., :channels], "png"))).mode == mode


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def png(mode: str) -> bytes:
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
def test_other_bytes_are_refused(encoding: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(data, encoding)


@given(position=st.integers(0, 10**6), value=st.integers(0, 255), encoding=st.sampled_from(["raw", "png"]))
def test_broken_bytes_raise_nothing_but_value_errors(position: int, value: int, encoding: str) -> None:
    data = bytearray(encode(IMAGE, encoding))
    data[position % len(data)] = value
    with contextlib.suppress(ValueError):
        assert decode(bytes(data), encoding).dtype == np.uint8
