"""DistributedDataParallel: saved in mid-epoch, resumed with any number of ranks, evaluated exactly over all of them.
torchrun --standalone --nproc-per-node 2 examples/ddp.py runs/demo/shards --epochs 2
"""

import os

import torch
import torch.distributed as dist
from plain import SAVE_EVERY, resume, save
from shared import arguments, small_network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fdt_pipeline import FDTLoader

GLOBAL_BATCH = 64  # over all ranks


@torch.no_grad()
def accuracy(model, loader):
    counts = torch.zeros(2, dtype=torch.float64, device=loader.device)  # right, all
    for images, labels, weights in loader:  # weight 0: it only fills the last batch up, and is counted elsewhere
        counts += torch.stack([weights[model(images).argmax(1) == labels].sum(), weights.sum()])
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def main():
    args = arguments(__doc__, checkpoint="runs/ddp.pt")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    batch = GLOBAL_BATCH // dist.get_world_size()  # of this rank; the loaders find out which share is its own
    loader = FDTLoader(args.shards / "train", batch, last_batch="drop", device=device)
    test_loader = FDTLoader(args.shards / "test", batch, train=False, last_batch="fill", weights=True, device=device)
    torch.manual_seed(0)
    model = DistributedDataParallel(small_network(loader.shape[0], loader.num_classes).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parts = {"model": model.module, "optimizer": optimizer, "loader": loader}
    step = resume(args.checkpoint, parts, device) if args.checkpoint.exists() else 0
    say = print if dist.get_rank() == 0 else lambda line: None
    while loader.epoch < args.epochs and step != args.steps:
        for images, targets in loader:
            loss = cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            say(f"step {step}: loss {loss.item():.6f}")  # of the first rank's share
            if step % SAVE_EVERY == 0 and dist.get_rank() == 0:
                save(args.checkpoint, step, parts)  # the loader's state holds for all ranks, however many
            if step == args.steps:
                break
    say(f"accuracy {accuracy(model.module, test_loader):.4f}")
    dist.barrier()  # so that no thread of gloo still frees a tensor when Python ends, which aborts the process
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
