"""Image files of every kind that people have in their folders: taken by the rule, or refused with a reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fdt_pipeline.sources.image_pixels import decode_image, is_gray, plain_census, resized

NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[:8, :8]).resize((48, 40)))


def saved(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, form, **options)
    return file.getvalue()


def rotated(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(SMOOTH, form, exif=exif)


def animated(form: str) -> bytes:
    frames = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)


def half_transparent() -> Image.Image:
    image = Image.fromarray(SMOOTH)
    image.putalpha(128)
    return image


def png16(channels: int) -> bytes:
    """Every pixel 0x1234, which Pillow cannot write in colors."""
    row = b"\0" + b"\x12\x34" * channels * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in [(b"IHDR", header), (b"IDAT", zlib.compress(row * 2)), (b"IEND", b"")]
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(side: int) -> bytes:
    """Bits, all black: 50,000 x 50,000 of them in 300 kB."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pack = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(pack.compress(row * 100) for _ in range(side // 100)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


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
        (rotated("JPEG"), 3, None),
        (rotated("PNG"), 3, None),
        (rotated("WEBP"), 3, None),
        (animated("GIF"), 3, None),
        (animated("PNG"), 3, None),
        (animated("WEBP"), 3, None),
        (saved(SMOOTH, "BMP"), 3, None),
        (saved(SMOOTH, "TIFF"), 3, None),
    ],
)
def test_only_files_that_the_rule_does_not_change_may_be_kept(data: bytes, channels: int, plain: str | None) -> None:
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


@pytest.mark.parametrize(("channels", "expected"), [(1, 18), (3, 18)])
def test_16_bits_become_8(channels: int, expected: int) -> None:
    """0x1234 is 18.1 of 255 as the whole is rounded; of colors Pillow gives the upper byte, 0x12 = 18."""
    assert (decode_image(png16(channels), channels).pixels == expected).all()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_animations_the_first_frame_is_taken(form: str) -> None:
    pixels = decode_image(animated(form), 3).pixels.astype(int)
    assert np.abs(pixels - SMOOTH).mean() < 20 < np.abs(pixels - (255 - SMOOTH)).mean()


def test_gray_becomes_three_equal_channels_and_cmyk_rgb() -> None:
    gray = decode_image(saved(SMOOTH[..., 0], "PNG"), 3).pixels
    np.testing.assert_array_equal(gray, np.repeat(SMOOTH[..., :1], 3, axis=2))
    cmyk = decode_image(saved(Image.fromarray(SMOOTH).convert("CMYK"), "TIFF"), 3).pixels
    assert np.abs(cmyk.astype(int) - SMOOTH).max() <= 1


FORMS: dict[str, Callable[[], bytes]] = {
    "jpg": lambda: saved(SMOOTH, "JPEG"),
    "progressive": lambda: saved(SMOOTH, "JPEG", progressive=True),
    "png": lambda: saved(SMOOTH, "PNG"),
    "webp": lambda: saved(SMOOTH, "WEBP", lossless=True),
    "gif": lambda: saved(Image.fromarray(SMOOTH).convert("P"), "GIF"),
    "bmp": lambda: saved(SMOOTH, "BMP"),
    "tiff": lambda: saved(SMOOTH, "TIFF"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_anywhere_is_refused(form: str) -> None:
    data = FORMS[form]()
    end = {"gif": 3}.get(form, 1)  # without what follows the last pixel it is whole
    lengths = [*range(1, len(data) - end, max(1, len(data) // 60)), len(data) - end - 1]
    for length in lengths:
        with pytest.raises(ValueError, match=r"not an image|not a readable image|image file is truncated"):
            decode_image(data[:length], 3)


def with_thumbnail(data: bytes) -> bytes:
    """A JPEG in whose header there is another, end and all."""
    exif = b"Exif\0\0" + saved(SMOOTH[:8, :8], "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:]


@pytest.mark.parametrize("make", [lambda data: data, with_thumbnail], ids=["bare", "thumbnail"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_half_a_jpeg_that_goes_on_in_zeros_is_refused(make: Callable[[bytes], bytes], options: dict[str, bool]) -> None:
    """As a download that broke off leaves it, if the room for it was taken first; Pillow sees nothing wrong."""
    data = make(saved(NOISE, "JPEG", **options))
    assert decode_image(data + b"what a phone adds", 3).pixels.shape == NOISE.shape
    for share in (0.5, 0.7, 0.9):
        kept = int(len(data) * share)
        with pytest.raises(ValueError, match="image file is truncated"):
            decode_image(data[:kept] + bytes(len(data) - kept), 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_turns_nothing(form: str) -> None:
    """Pillow's parser of TIFF raises for it when a PNG or WebP is asked how it is turned."""
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode_image(saved(SMOOTH, form, exif=b"Exif\0\0garbage!", **options), 3).pixels
    np.testing.assert_array_equal(pixels, decode_image(saved(SMOOTH, form, **options), 3).pixels)


def test_a_transparent_gray_of_16_bits_is_black() -> None:
    wide = Image.fromarray(np.array([[0x1234, 0xFFFF]], np.uint16))
    file = saved(wide, "PNG", transparency=0x1234)
    assert decode_image(file, 1).pixels.ravel().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image: the file has zero bytes"),
        (b"<html>404 Not Found</html>", "not an image: it begins with b'<html>404 Not Fo'"),
        (b"\xff\xd8\xff", "not an image: it begins with"),
        (saved(NOISE.astype(np.float32)[..., 0], "TIFF"), "floating-point pixels have no fixed range"),
    ],
)
def test_what_is_no_image_is_told_with_its_reason(data: bytes, message: str) -> None:
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


def test_decoding_takes_a_few_times_the_memory_of_the_pixels(tmp_path: Path) -> None:
    """Of a transparent image, the worst kind: 5.4 times, of which 4 are Pillow's own copies; at once it took 9.1."""
    Image.new("RGBA", (4000, 4000), (1, 2, 3, 128)).save(tmp_path / "1.png", compress_level=1)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "1.png")]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert float(done.stdout) < 7


@pytest.mark.parametrize("side", [50_000, 12_000])
def test_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    """2.5 and 0.14 gigapixels: Pillow refuses the first and only warns of the second."""
    data = png_bomb(side)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"memory budget: {side**2} pixels, expected at most 89478485"):
            decode_image(data, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6


def test_a_text_that_unpacks_without_end_is_refused() -> None:
    """A PNG may hold compressed text, which Pillow unpacks when it opens the file."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(saved(SMOOTH, "PNG", pnginfo=info), 3)


def test_broken_exif_is_not_worth_a_warning() -> None:
    data = saved(SMOOTH, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40)
    np.testing.assert_array_equal(decode_image(data, 3).pixels, decode_image(saved(SMOOTH, "JPEG"), 3).pixels)


def test_gray_is_seen_from_the_header(tmp_path: Path) -> None:
    assert is_gray(io.BytesIO(saved(SMOOTH[..., 0], "JPEG")))
    assert is_gray(io.BytesIO(png16(1)))
    assert not is_gray(io.BytesIO(saved(SMOOTH, "JPEG")))
    with pytest.raises(ValueError, match="not an image: it begins with b'text'"):
        is_gray(io.BytesIO(b"text"))


@pytest.mark.parametrize("shape", [(40, 48, 3), (48, 40, 1), (1, 1000, 3), (7, 7, 3), (33, 100, 1)])
@pytest.mark.parametrize("size", [1, 16, 64])
def test_resizing_gives_the_middle_square(shape: tuple[int, int, int], size: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    small = resized(pixels, size)
    assert (small.shape, small.dtype) == ((size, size, shape[2]), np.uint8)


def test_resizing_keeps_a_plane_and_the_place_of_things() -> None:
    assert (resized(np.full((30, 50, 3), 77, np.uint8), 10) == 77).all()
    middle = np.zeros((30, 90, 1), np.uint8)
    middle[:, 30:60] = 255
    assert (resized(middle, 30) == 255).all()
    left = resized(np.concatenate([np.full((8, 4, 1), 255, np.uint8), np.zeros((8, 4, 1), np.uint8)], axis=1), 8)
    assert (left[:, 0] == 255).all()
    assert (left[:, -1] == 0).all()
