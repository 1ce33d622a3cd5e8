"""Image files of every kind that people have in their folders: taken by the rule, or refused with a reason."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fdt_pipeline.sources.image_pixels import decode_image, is_gray, pixel_limit, plain_census, resized
from tests.folders import LFS_POINTER

NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[:8, :8]).resize((48, 40)))


def saved(image, form, **options):
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, form, **options)
    return file.getvalue()


def turned(form, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(SMOOTH, form, exif=exif)


def animated(form):
    frames = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)


def half_transparent():
    image = Image.fromarray(SMOOTH)
    image.putalpha(128)
    return image


def png(side, bits, color, data):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png16(channels):
    """Every pixel 0x1234, which Pillow cannot write in colors."""
    return png(2, 16, {1: 0, 3: 2}[channels], zlib.compress(2 * (b"\0" + b"\x12\x34" * channels * 2)))


def png_bomb(side):
    """Bits, all black: 50,000 x 50,000 of them in 300 kB."""
    pack = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    return png(side, 1, 0, b"".join(pack.compress(row * 100) for _ in range(side // 100)) + pack.flush())


@pytest.mark.parametrize(
    ("data", "channels", "plain"),
    [
        (saved(SMOOTH, "JPEG", quality=95), 3, "jpg"),
        (saved(SMOOTH, "JPEG", progressive=True), 3, "jpg"),
        (saved(SMOOTH[..., 0], "JPEG"), 1, "jpg"),
        (saved(SMOOTH, "PNG"), 3, "png"),
        (saved(SMOOTH[..., 0], "PNG"), 1, "png"),
        (saved(SMOOTH, "WEBP", lossless=True), 3, "webp"),
        (saved(SMOOTH[..., 0], "JPEG"), 3, None),
        (saved(SMOOTH, "PNG"), 1, None),
        (saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG"), 3, None),
        (saved(Image.fromarray(SMOOTH).convert("P"), "PNG"), 3, None),
        (saved(Image.fromarray(SMOOTH).convert("RGBA"), "PNG"), 3, None),
        (saved(half_transparent(), "WEBP"), 3, None),
        (saved(half_transparent(), "TIFF"), 3, None),
        (saved(Image.fromarray(SMOOTH).convert("1"), "PNG"), 1, None),
        (saved(Image.fromarray(SMOOTH), "PNG", transparency=(0, 0, 0)), 3, None),
        (saved(Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 257), "PNG"), 1, None),
        (png16(1), 1, None),
        (png16(3), 3, None),
        (turned("JPEG"), 3, None),
        (turned("PNG"), 3, None),
        (turned("WEBP"), 3, None),
        (animated("GIF"), 3, None),
        (animated("PNG"), 3, None),
        (animated("WEBP"), 3, None),
        (saved(SMOOTH, "BMP"), 3, None),
        (saved(SMOOTH, "TIFF"), 3, None),
    ],
)
def test_only_files_that_the_rule_does_not_change_may_be_kept(data, channels, plain):
    pixels, found = decode_image(data, channels)
    assert found == plain
    assert pixels.shape[2] == channels
    assert pixels.flags.c_contiguous
    census = plain_census(data, channels)
    assert (census.plain if census else None) == plain
    if census:
        assert census.shape == pixels.shape
        for channel in range(channels):
            counted = np.bincount(pixels[..., channel].ravel(), minlength=256)
            np.testing.assert_array_equal(census.counts[channel], counted)
    if plain:
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(pixels.squeeze(), np.asarray(image))


@given(st.integers(0, 65535), st.sampled_from([("I;16", "<u2"), ("I;16B", ">u2")]))
def test_16_bits_are_rounded_to_8_in_either_byte_order(value, kind):
    mode, dtype = kind
    wide = Image.frombytes(mode, (1, 1), np.array(value, dtype).tobytes())
    assert decode_image(saved(wide, "TIFF"), 1).pixels.item() == round(value / 257)


def transparent_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return saved(image, "PNG", transparency=1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(np.array([[[200] * 3 + [alpha] for alpha in (255, 51, 0)]], np.uint8), "PNG"), [200, 40, 0]),
        (saved(np.array([[[200, alpha] for alpha in (255, 51, 0)]], np.uint8), "PNG"), [200, 40, 0]),
        (saved(np.array([[0x1234, 0xFFFF]], np.uint16), "PNG", transparency=0x1234), [0, 255]),
        (transparent_palette(), [[10, 20, 30], [0, 0, 0]]),
        (png16(3), [0x12, 0x12]),
    ],
    ids=["RGBA", "LA", "I;16", "P", "16 bits a color"],
)
def test_transparent_images_are_laid_on_black_and_16_bits_of_a_color_are_its_upper_byte(data, expected):
    pixels = decode_image(data, 3).pixels[0]
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.array(expected).reshape(len(pixels), -1), pixels.shape))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_animations_the_first_frame_is_taken(form):
    pixels = decode_image(animated(form), 3).pixels.astype(int)
    assert np.abs(pixels - SMOOTH).mean() < 20 < np.abs(pixels - (255 - SMOOTH)).mean()


@pytest.mark.parametrize(("mode", "form"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "BMP"), ("CMYK", "TIFF")])
def test_opaque_8_bit_modes_are_what_pillow_makes_of_them(mode, form):
    data = saved(Image.fromarray(SMOOTH).convert(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode_image(data, 3).pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {}) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF")),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_file_that_is_cut_anywhere_is_refused(form, options):
    data = saved(SMOOTH, form, **options)
    end = {"GIF": 3}.get(form, 1)  # without what follows the last pixel it is whole
    lengths = [*range(1, len(data) - end, max(1, len(data) // 60)), len(data) - end - 1]
    for length in lengths:
        with pytest.raises(ValueError, match=r"not an image|not a readable image|image file is truncated"):
            decode_image(data[:length], 3)


@pytest.mark.parametrize("census", [plain_census, decode_image])
def test_a_png_with_broken_pixels_is_refused(census):
    """Pillow decodes it to look for EXIF behind the pixels, and would give zeros after that."""
    data = bytearray(saved(SMOOTH, "PNG"))
    data[data.index(b"IDAT") + 4] = 0xFF
    with pytest.raises(ValueError, match="not a readable image"):
        census(bytes(data), 3)


def with_thumbnail(data):
    """A JPEG in whose header there is another, end and all."""
    exif = b"Exif\0\0" + saved(SMOOTH[:8, :8], "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:]


@pytest.mark.parametrize("make", [lambda data: data, with_thumbnail], ids=["bare", "thumbnail"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_half_a_jpeg_that_goes_on_in_zeros_is_refused(make, options):
    """A download that broke off leaves such a file if its room was taken first; Pillow sees nothing wrong."""
    data = make(saved(NOISE, "JPEG", **options))
    assert decode_image(data + b"what a phone adds", 3).pixels.shape == NOISE.shape
    for share in (0.5, 0.7, 0.9):
        kept = int(len(data) * share)
        with pytest.raises(ValueError, match="image file is truncated"):
            decode_image(data[:kept] + bytes(len(data) - kept), 3)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(orientation, turns):
    np.testing.assert_array_equal(decode_image(turned("PNG", orientation), 3).pixels, np.rot90(SMOOTH, turns))


@pytest.mark.parametrize("exif", [b"garbage!", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_turns_nothing(form, exif):
    """Pillow's parser of TIFF raises for it when a PNG or WebP is asked how it is turned, or warns."""
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode_image(saved(SMOOTH, form, exif=b"Exif\0\0" + exif, **options), 3).pixels
    np.testing.assert_array_equal(pixels, decode_image(saved(SMOOTH, form, **options), 3).pixels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image: the file has zero bytes"),
        (LFS_POINTER, "^a Git LFS pointer, not the file itself: git lfs pull$"),
        (b"<html>404 Not Found</html>", "not an image: it begins with b'<html>404 Not Fo'"),
        (b"\xff\xd8\xff", "not an image: it begins with"),
        (saved(NOISE.astype(np.float32)[..., 0], "TIFF"), "floating-point pixels have no fixed .*8 or 16 bits"),
        (saved(np.full((2, 2), 70000, np.int32), "TIFF"), "expected 16-bit pixels 0..65535, got 70000..70000"),
    ],
)
def test_what_is_no_image_is_told_with_its_reason(data, message):
    with pytest.raises(ValueError, match=message):
        decode_image(data, 3)


MEMORY = """
import sys
from fdt_pipeline.sources.image_pixels import decode_image

def peak():  # of this process alone: what getrusage says begins with the peak of the parent
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

data = open(sys.argv[1], "rb").read()
before = peak()
pixels = decode_image(data, 3).pixels
print((peak() - before) * 1024 / pixels.nbytes)
"""


def test_decoding_takes_a_few_times_the_memory_of_the_pixels(tmp_path):
    """A transparent image, the worst kind, takes 5.4 times; 4 of them are Pillow's own copies."""
    Image.new("RGBA", (4000, 4000), (1, 2, 3, 128)).save(tmp_path / "1.png", compress_level=1)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "1.png")]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert float(done.stdout) < 7


@pytest.mark.parametrize("side", [50_000, 12_000])
def test_bombs_are_refused_before_they_are_decoded(side):
    """2.5 and 0.14 gigapixels: Pillow refuses the first and only warns of the second."""
    data = png_bomb(side)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"memory budget: Image size \({side**2} pixels\) exceeds limit"):
            decode_image(data, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6


def test_an_image_over_the_limit_of_pixels_is_taken_where_the_limit_is_raised_and_only_there():
    data = png_bomb(12_000)
    with pixel_limit(12_000**2):
        assert decode_image(data, 1).pixels.shape == (12_000, 12_000, 1)
    with pixel_limit(12_000**2 - 1), pytest.raises(ValueError, match=r"allow it with --max-pixels N .PIL.Image.MAX_IM"):
        decode_image(data, 1)
    with pytest.raises(ValueError, match="too large to decode"):
        decode_image(data, 1)


def test_a_text_that_unpacks_without_end_is_refused():
    """A PNG may hold compressed text, which Pillow unpacks when it opens the file."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(saved(SMOOTH, "PNG", pnginfo=info), 3)


def test_gray_is_seen_from_the_header(tmp_path):
    assert is_gray(io.BytesIO(saved(SMOOTH[..., 0], "JPEG")))
    assert is_gray(io.BytesIO(png16(1)))
    assert not is_gray(io.BytesIO(saved(SMOOTH, "JPEG")))
    with pytest.raises(ValueError, match="not an image: it begins with b'text'"):
        is_gray(io.BytesIO(b"text"))


@pytest.mark.parametrize("size", [1, 16, 64])
def test_resizing_gives_a_square_of_the_middle_and_keeps_planes_and_the_place_of_things(size):
    for shape in ((40, 48, 3), (48, 40, 1), (1, 1000, 3), (7, 7, 3), (33, 100, 1)):
        plane = np.full((size, size, shape[2]), 77)
        np.testing.assert_array_equal(resized(np.full(shape, 77, np.uint8), size), plane)
    middle = np.zeros((30, 90, 1), np.uint8)
    middle[:, 30:60] = 255
    assert (resized(middle, 30) == 255).all()
    left = resized(np.concatenate([np.full((8, 4, 1), 255, np.uint8), np.zeros((8, 4, 1), np.uint8)], axis=1), 8)
    assert (left[:, 0] == 255).all()
    assert (left[:, -1] == 0).all()
