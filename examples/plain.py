"""A plain PyTorch loop that is saved in mid-epoch and goes on there, and an exact evaluation.

python examples/plain.py runs/demo/shards --epochs 2    # stop it at any moment: the same command goes on
"""

import os

import torch
from shared import arguments, small_network
from torch.nn.functional import cross_entropy

from fdt_pipeline import FDT, FDTLoader

SAVE_EVERY = 3  # steps; 1,000 in earnest


def save(path, step, parts):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, f"{path}.part")
    os.replace(f"{path}.part", path)  # killed before this line, a run leaves the old file whole


def resume(path, parts, device):
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])  # the loader goes on with the batch after the last one that it gave
    return saved["step"]


def main():
    args = arguments(__doc__, checkpoint="runs/plain.pt")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = FDTLoader(args.shards / "train", batch_size=64, mix=FDT(), device=device, seed=0)
    test_loader = FDTLoader(args.shards / "test", batch_size=64, train=False, device=device)
    torch.manual_seed(0)
    model = small_network(loader.shape[0], loader.num_classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    step = resume(args.checkpoint, parts, device) if args.checkpoint.exists() else 0
    while loader.epoch < args.epochs and step != args.steps:  # iterating moves loader.epoch on by one
        for images, targets in loader:  # targets: f32 [n num_classes], which cross_entropy takes as they are
            loss = cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            print(f"step {step}: loss {loss.item():.6f}")
            if step % SAVE_EVERY == 0:
                save(args.checkpoint, step, parts)
            if step == args.steps:
                break
    with torch.no_grad():  # train=False: every sample once, in a last batch that may be smaller
        right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in test_loader)
    print(f"accuracy {right / test_loader.num_samples:.4f}")


if __name__ == "__main__":
    main()
