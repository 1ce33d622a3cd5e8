"""Hugging Face Accelerate: it prepares model and optimizer; the loader is sharded and on the device as it is.

python examples/accelerate_fit.py runs/demo/shards --epochs 2    # or torchrun, or accelerate launch
"""

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
    right, total = accelerator.reduce(counts, "sum").tolist()
    return right / total


def main():
    args = arguments(__doc__, checkpoint="runs/accelerate")
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # before the loaders: they take its ranks for theirs
    device, batch = accelerator.device, 64 // accelerator.num_processes
    loader = FDTLoader(args.shards / "train", batch, last_batch="drop", device=device)
    test_loader = FDTLoader(args.shards / "test", batch, train=False, last_batch="fill", weights=True, device=device)
    torch.manual_seed(0)
    model = small_network(loader.shape[0], loader.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)  # without the loader: it would be sharded twice
    accelerator.register_for_checkpointing(loader)
    if args.checkpoint.exists():
        accelerator.load_state(args.checkpoint)
    step = loader.epoch * len(loader) + loader.state_dict()["batch"]
    while loader.epoch < args.epochs and step != args.steps:
        for images, targets in loader:
            loss = cross_entropy(model(images), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
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
