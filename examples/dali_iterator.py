"""FDTLoader's outputs as a DALI pipeline, for a trainer that is built on DALI's own iterators.

python examples/dali_iterator.py runs/demo/shards --epochs 2
"""

import torch
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from shared import arguments, small_network
from torch.nn.functional import cross_entropy

from fdt_pipeline import FDT, fdt_pipeline
from fdt_pipeline.shards import read_manifest


def main():
    args = arguments(__doc__)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    pipeline = fdt_pipeline(
        args.shards / "train", mix=FDT(), device=device,
        batch_size=64, num_threads=2, device_id=0 if device == "gpu" else None,
    )  # fmt: skip
    batches = DALIGenericIterator(pipeline, ["images", "targets"])
    manifest, step = read_manifest(args.shards / "train"), 0
    model = small_network(manifest.channels, len(manifest.classes)).to(device.replace("gpu", "cuda"))
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
        batches.reset()  # goes on to the next epoch


if __name__ == "__main__":
    main()
