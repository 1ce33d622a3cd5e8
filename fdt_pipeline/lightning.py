"""For PyTorch Lightning: a callback that gives loaders the states that Lightning would drop.

    trainer = Trainer(callbacks=[RestoreLoaders()])

Lightning's checkpoints hold the state of every loader. Where `configure_optimizers` asks for
`trainer.estimated_stepping_batches`, as schedules of a number of steps do, the loaders are set up before the checkpoint
is read, and Lightning (2.6) then hands the states to none of them: a run goes on with the first batches of its epoch,
which it has had before, and drops as many of the last ones.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from fdt_pipeline.loader.loader import FDTLoader


class RestoreLoaders(Callback):
    """Load the states of a checkpoint, also of one that was saved without this callback, into each FDTLoader among the
    training loaders that has not got its own by the time training starts."""

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None  # None where no checkpoint was read

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":  # validate() and test() read a checkpoint too, and train nothing
            return
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        self._states = loop.get("state_dict", {}).get("combined_loader", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """ValueError if there are not as many loaders as states, or a state is of another loader."""
        states, self._states = self._states, None
        loaders = [each for each in CombinedLoader(trainer.train_dataloader).flattened if hasattr(each, "state_dict")]
        if states is None or not loaders:
            return
        if not states:
            warnings.warn("the checkpoint has no states of loaders, so they begin with their first epoch", stacklevel=2)
            return
        if len(states) != len(loaders):
            raise ValueError(
                f"the checkpoint has the states of {len(states)} training loaders, and this run has {len(loaders)} "
                "that keep one: pass the loaders of the run that saved it, in the same order, or fit without ckpt_path"
            )
        for loader, state in zip(loaders, states, strict=True):
            if isinstance(loader, FDTLoader) and loader.state_dict() != state:
                loader.load_state_dict(state)
