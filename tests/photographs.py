"""Made-up images with the colors, edges and noise of photographs, and files of them."""

import io

import numpy as np
from PIL import Image


def photograph(height, width, seed=0):
    """u8[h w 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def image_file(image, form="PNG", orientation=None, **options):
    """u8[h w 3] or u8[h w] -> u8[bytes] of a file, lossless but for JPEG; orientation: in its EXIF."""
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if form == "WEBP":
        options["lossless"] = True
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return np.frombuffer(file.getvalue(), np.uint8)
