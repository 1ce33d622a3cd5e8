"""Image files as their sizes are read before DALI decodes them, and as DALI then shows them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from fdt_pipeline.loader.decoding import Decoding
from fdt_pipeline.loader.image_files import decodable, image_size
from tests.decoding import decoded
from tests.photographs import image_file, photograph

pytestmark = pytest.mark.dali
FORMS = ["JPEG", "PNG", "WEBP"]
PHOTO = photograph(24, 40)


def upright(file):
    with Image.open(io.BytesIO(file.data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def shown(file):
    """As DALI decodes it."""
    [image] = decoded([decodable(file, 3)], Decoding(True, 3))
    return image


def with_exif(form, data):
    return image_file(PHOTO, form, exif=b"Exif\0\0" + data)


def big_endian(orientation):
    return b"MM\0\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMS)
def test_files_are_shown_upright_and_their_sizes_are_those(form, orientation):
    file = image_file(PHOTO, form, orientation)
    np.testing.assert_allclose(shown(file).astype(int), upright(file), atol=2 if form == "JPEG" else 0)
    assert image_size(file) == upright(file).shape[:2] == ((24, 40) if orientation <= 4 else (40, 24))


@pytest.mark.parametrize(
    "exif", [b"garbage!", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40, b"", big_endian(6), big_endian(9)]
)
@pytest.mark.parametrize("form", FORMS)
def test_sizes_are_those_that_dali_shows_whatever_the_exif(form, exif):
    file = with_exif(form, exif)
    assert image_size(file) == shown(file).shape[:2] == ((40, 24) if exif == big_endian(6) else (24, 40))


@pytest.mark.parametrize("form", FORMS)
def test_a_long_header_is_read_to_its_end(form):
    """An EXIF of 60 kB, as a thumbnail makes it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 60_000
    file = image_file(PHOTO, form, exif=exif)
    assert image_size(file) == shown(file).shape[:2] == (40, 24)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2, "quality": 30}, {"comment": b"x" * 999}])
def test_sizes_of_jpegs_of_all_kinds_are_read(options):
    assert image_size(image_file(PHOTO, "JPEG", **options)) == (24, 40)


def test_turned_gray_images_stay_gray():
    file = image_file(PHOTO[..., 0], "PNG", 6)
    [image] = decoded([decodable(file, 1)], Decoding(True, 1))
    np.testing.assert_array_equal(image[..., 0], np.rot90(PHOTO[..., 0], -1))


def test_upright_files_reach_dali_as_they_are():
    for form in FORMS:
        file = image_file(PHOTO, form)
        assert decodable(file, 3) is file


def test_a_broken_file_is_left_for_dali_to_report():
    file = image_file(PHOTO, "JPEG", 6)[:700]
    assert decodable(file, 3) is file


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff", image_file(PHOTO, "PNG")[:20].tobytes()])
def test_a_header_that_cannot_be_read_is_an_error(data):
    with pytest.raises(ValueError, match="its size cannot be read"):
        image_size(np.frombuffer(data, np.uint8))
