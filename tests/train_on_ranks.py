"""Train a recipe and keep the gradient of every step, in this process or as one of torchrun's:

torchrun --nproc-per-node 2 tests/train_on_ranks.py SHARDS OUT KEPT DTYPE RECIPE BATCH_SIZE EPOCHS BREAK_OFF
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from train.ddp import is_first_rank
from train.recipes import make_recipe
from train.trainer import Run, fit


class BrokenOffError(Exception):
    pass


def train(shards, out, dtype, name, batch_size, epochs, break_off=0):
    """-> [step][parameter] of the gradients as the optimizer had them, of a model whose parameters are `dtype`.

    break_off: neither this step, counted from 1, nor any after it is taken. A run that is there already goes on.
    """
    kept = []
    step, previous = Run._step, torch.get_default_dtype()

    def keeping(run, *batch):
        if len(kept) + 1 == break_off:
            raise BrokenOffError
        if not kept:
            run.model.register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))
        figures = step(run, *batch)
        kept.append({key: value.grad.clone() for key, value in run.model.named_parameters()})
        return figures

    Run._step = keeping
    torch.set_default_dtype(dtype)
    try:
        fit(make_recipe(name, batch_size=batch_size, epochs=epochs), shards, out, True, "cpu")
    except BrokenOffError:
        pass
    finally:
        Run._step = step
        torch.set_default_dtype(previous)
    return kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    shards, out, kept, dtype, name, *numbers = sys.argv[1:]
    gradients = train(Path(shards), Path(out), getattr(torch, dtype), name, *map(int, numbers))
    if is_first_rank():
        torch.save(gradients, kept)
