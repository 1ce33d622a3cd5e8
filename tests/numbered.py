"""Images that identify themselves: what comes out of a loader tells which sample it was. And a source of one's own."""

import numpy as np

from fdt_pipeline.sources import ArraySource, Sample

NUM_SAMPLES = 230
LABELS = np.minimum(np.arange(NUM_SAMPLES) % 10, 6).astype(np.int64)  # 7 classes, the last four times as large


def numbered_images(n=NUM_SAMPLES, shape=(6, 5, 3)):
    """u8[n h w c]: image i is i % 256 at the first pixel and i // 256 at the second; its other pixels are random."""
    images = np.random.default_rng(n).integers(0, 256, (n, *shape), np.uint8)
    images[:, 0, 0, 0] = np.arange(n) % 256
    images[:, 0, 1, 0] = np.arange(n) // 256
    return images


def image_numbers(pixels):
    """f32[n c h w] in 0..255 -> i64[n]: the inverse."""
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]).round().long().numpy()


class MixedSizes(ArraySource):
    """20 flat images, each of a size of its own, whose level is 10 times their label."""

    def __init__(self):
        super().__init__(np.zeros((20, 1, 1, 3), np.uint8), np.arange(20) % 5)
        self.shape = None

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample._replace(image=np.full((3 + index, 9 - index % 5, 3), 10 * sample.label, np.uint8))


class PlainSource:
    """A source with nothing but what every source must have: images of any sizes, sample i of class i % num_classes."""

    kind, split, shape = "plain", None, None

    def __init__(self, images, num_classes=2):
        self.images, self.labels = images, np.arange(len(images)) % num_classes
        self.classes = tuple(map(str, range(num_classes)))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Sample(self.images[index], int(self.labels[index]), str(index))


def ring_slots(position, num, capacity):
    """Numbers of the stream's images in each slot, once images position .. position + num - 1 are in, and the slots of
    these."""
    slots = np.empty(min(capacity, position + num), np.int64)
    for number in range(max(0, position + num - capacity), position + num):
        slots[number % capacity] = number
    return slots, np.arange(position, position + num) % capacity
