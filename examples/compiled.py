"""torch.compile of the training step: last_batch="drop" gives every batch the same shape, so it is compiled once.

python examples/compiled.py runs/demo/shards
"""

import torch
from shared import arguments, small_network
from torch.nn.functional import cross_entropy

from fdt_pipeline import FDTLoader


def main():
    args = arguments(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = FDTLoader(args.shards / "train", batch_size=64, last_batch="drop", device=device)
    torch.manual_seed(0)
    model = small_network(loader.shape[0], loader.num_classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @torch.compile(fullgraph=True)
    def loss_of(images, targets):
        return cross_entropy(model(images), targets)

    step = 0
    while loader.epoch < args.epochs and step != args.steps:
        for images, targets in loader:
            loss = loss_of(images, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            print(f"step {step}: loss {loss.item():.6f}")
            torch.compiler.set_stance("fail_on_recompile")  # from the second batch on: an error, not a slow step
            if step == args.steps:
                break


if __name__ == "__main__":
    main()
