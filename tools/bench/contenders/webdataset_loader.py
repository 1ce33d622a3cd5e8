"""webdataset's own loader: tars read in sequence, shuffled in a buffer, batched in the workers."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from torch.utils.data import default_collate

from fdt_pipeline.shards import EXTENSIONS

from ..task import Entry, Task
from .epochs import LoaderEpochs, to_device
from .images import is_raw, read_tensor
from .installed import imported
from .transforms import whole_transform

BUFFER = 1000  # samples, as in webdataset's own examples


class Decode:
    """(content of an image, label) -> (f32[c h w], label). An npy has been decoded by webdataset; a file comes as
    bytes, which Pillow decodes, as for webdataset's "pil", but to a tensor at once."""

    def __init__(self, task: Task) -> None:
        self._raw, self._channels, self._transform = is_raw(task), task.manifest.channels, whole_transform(task)

    def __call__(self, sample: tuple[Any, int]) -> tuple[torch.Tensor, int]:
        content, label = sample
        if self._raw:
            return self._transform(torch.from_numpy(content).permute(2, 0, 1)), label
        return self._transform(read_tensor(BytesIO(content), self._channels)), label


def _make(task: Task) -> LoaderEpochs:
    wds = imported("webdataset", "pip install webdataset")
    tars = [str(task.shards / shard.name) for shard in task.manifest.shards]
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), detshuffle=True, seed=task.seed, empty_check=False)
        .shuffle(BUFFER)
        .decode()
        .to_tuple(";".join(EXTENSIONS[task.manifest.encoding]), "cls")
        .map(Decode(task))
        .batched(task.batch_size, collation_fn=default_collate)
    )
    loader = wds.WebLoader(
        dataset, batch_size=None, num_workers=task.num_workers, persistent_workers=task.num_workers > 0,
        pin_memory=task.device != "cpu",
    )  # fmt: skip
    return LoaderEpochs(loader, lambda batch: to_device((batch[0], batch[1]), task))


ENTRIES = (
    Entry("webdataset", "none", _make, note="WebLoader; batches are made in the workers"),
)  # fmt: skip
