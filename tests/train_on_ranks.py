"""Train a recipe and keep the gradient of every step, in this process or as one of torchrun's:

torchrun --nproc-per-node 2 tests/train_on_ranks.py SHARDS OUT KEPT DTYPE RECIPE BATCH_SIZE EPOCHS BREAK_OFF
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from train import trainer
from train.ddp import is_first_rank
from train.recipes import make_recipe


class BrokenOffError(Exception):
    pass


def train(shards, out, dtype, name, batch_size, epochs, break_off=0):
    """-> [step][parameter] of the gradients as the optimizer had them, of a model whose parameters are `dtype`.

    break_off: neither this step, counted from 1, nor any after it is taken. A run that is there already goes on.
    """
    kept = []
    step, previous = trainer.TrainStep, torch.get_default_dtype()

    class Keeping(step):
        def __call__(self, *batch):
            if len(kept) + 1 == break_off:
                raise BrokenOffError
            model = getattr(self.network, "module", self.network)
            if not kept:
                model.register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))
            figures = super().__call__(*batch)
            kept.append({key: value.grad.clone() for key, value in model.named_parameters()})
            return figures

    trainer.TrainStep = Keeping
    torch.set_default_dtype(dtype)
    try:
        trainer.fit(make_recipe(name, batch_size=batch_size, epochs=epochs), shards, out, True, "cpu")
    except BrokenOffError:
        pass
    finally:
        trainer.TrainStep = step
        torch.set_default_dtype(previous)
    return kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    shards, out, kept, dtype, name, *numbers = sys.argv[1:]
    gradients = train(Path(shards), Path(out), getattr(torch, dtype), name, *map(int, numbers))
    if is_first_rank():
        torch.save(gradients, kept)
