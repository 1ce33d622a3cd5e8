"""Hugging Face Accelerate: it prepares model and optimizer; a loader that it prepared would be sharded twice.

python examples/accelerate_fit.py runs/demo/shards --epochs 2 --accumulate 4    # or torchrun, or accelerate launch
"""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from shared import arguments, small_network
from torch.nn.functional import cross_entropy

from fdt_pipeline import FDTLoader


@torch.no_grad()
def accuracy(accelerator, model, loader):
    counts = torch.zeros(2, device=accelerator.device)  # right, all
    for images, labels, weights in loader:
        counts += torch.stack([weights[model(images).argmax(1) == labels].sum(), weights.sum()])
    return torch.div(*accelerator.reduce(counts, "sum")).item()


def main():
    args = arguments(__doc__, checkpoint="runs/accelerate", accumulate=1)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # before the loaders: they take its ranks for theirs
    device, size = accelerator.device, 64 // accelerator.num_processes
    loader = FDTLoader(args.shards / "train", size, last_batch="drop", device=device)
    test_loader = FDTLoader(args.shards / "test", size, train=False, last_batch="fill", weights=True, device=device)
    torch.manual_seed(0)
    model = small_network(loader.shape[0], loader.num_classes)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    accelerator.register_for_checkpointing(loader)
    if args.checkpoint.exists():
        accelerator.load_state(args.checkpoint)
    length, group = len(loader), args.accumulate
    step = loader.epoch * -(-length // group) + -(-loader.state_dict()["batch"] // group)
    while loader.epoch < args.epochs and step != args.steps:
        for batch, (images, targets) in enumerate(loader, loader.state_dict()["batch"] + 1):
            # Said here: accumulate() sees the epoch's end of prepared loaders alone, and would add up across it.
            accelerator.sync_gradients = batch % group == 0 or batch == length
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(model):
                loss = cross_entropy(model(images), targets)
                accelerator.backward(loss / min(group, length - (batch - 1) // group * group))
            if accelerator.sync_gradients:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                accelerator.print(f"step {step}: loss {loss.item():.6f}")
            if step == args.steps:
                break
    accelerator.save_state(args.checkpoint)
    accelerator.print(f"accuracy {accuracy(accelerator, model, test_loader):.4f}")
    accelerator.wait_for_everyone()  # so that no thread of gloo still frees a tensor when Python ends
    accelerator.end_training()


if __name__ == "__main__":
    main()
