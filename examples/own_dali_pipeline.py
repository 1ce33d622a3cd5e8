"""A DALI pipeline of one's own: DALI's reader and augmentations, then fn.fdt.superpose, and DALI's iterator.

python examples/own_dali_pipeline.py runs/demo/shards
"""

import math

import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy
from shared import arguments, small_network
from torch.nn.functional import cross_entropy

from fdt_pipeline import webdataset_files
from fdt_pipeline.shards import read_manifest


@pipeline_def(num_threads=2, seed=0)
def superposed(shards, device):
    manifest = read_manifest(shards)
    file, label = fn.readers.webdataset(**webdataset_files(shards), random_shuffle=True, name="shards")
    # Raw shards: an npy file ends with the pixels. Of jpg, png and webp it is fn.decoders.image(file).
    u8 = fn.reshape(file[-math.prod(manifest.shape) :], shape=manifest.shape, layout="HWC")
    u8 = fn.rotate(u8, angle=fn.random.uniform(range=[-10, 10]), keep_size=True, fill_value=0)
    u8 = fn.brightness(u8, brightness=fn.random.uniform(range=[0.8, 1.2]))
    u8 = u8.gpu() if device == "cuda" else u8
    # Each image becomes a sum of images of the batch, of different classes, shifted and flipped.
    return tuple(fn.fdt.superpose(u8, label, num_classes=len(manifest.classes), pad=4, flip=True, mean=117, std=256))


def main():
    args = arguments(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = superposed(args.shards / "train", device, batch_size=64, device_id=0 if device == "cuda" else None)
    batches = DALIGenericIterator(
        pipeline, ["images", "targets"], reader_name="shards", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    manifest, step = read_manifest(args.shards / "train"), 0
    model = small_network(manifest.channels, len(manifest.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(args.epochs):
        for [batch] in batches:
            loss = cross_entropy(model(batch["images"]), batch["targets"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            print(f"step {step}: loss {loss.item():.6f}")
            if step == args.steps:
                return


if __name__ == "__main__":
    main()
