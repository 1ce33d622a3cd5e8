"""Lightning's checkpoints and the states of loaders, with the real library."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fdt_pipeline import FDTLoader
from tests.loading import assert_same
from tests.peers import peer

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

STEPS, EPOCHS = 5, 3  # of 46 of 230 images


@pytest.fixture(scope="module")
def lightning():
    return peer("lightning")


@pytest.fixture
def fit(lightning, numbered_shards):
    """The batches of a run, of one training loader or of several, whose state is saved after so many steps."""
    from fdt_pipeline.lightning import RestoreLoaders

    class Model(lightning.LightningModule):
        def __init__(self, asks, save, steps):
            super().__init__()
            self.asks, self.save, self.steps, self.seen = asks, save, steps, []
            self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(7))
            self.network(torch.zeros(1, 3, 6, 5))

        def training_step(self, batch, _):
            for images, targets in batch.values():
                self.seen.append((images.clone(), targets.clone()))
            return sum(cross_entropy(self.network(images), targets) for images, targets in batch.values())

        def validation_step(self, *_):
            pass

        def on_train_batch_end(self, *_):
            if self.save and self.global_step == self.steps:
                self.trainer.save_checkpoint(self.save)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1e-4)
            steps = self.trainer.estimated_stepping_batches if self.asks else EPOCHS * STEPS
            assert steps == EPOCHS * STEPS
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def run(save=None, steps=None, resume=None, asks=True, callbacks=(RestoreLoaders,), seeds=(3,), validate=None):
        loaders = {f"seed {seed}": FDTLoader(numbered_shards, 46, seed=seed) for seed in seeds}
        model = Model(asks, save, steps)
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[kind() for kind in callbacks],
        )  # fmt: skip
        if validate:
            trainer.validate(model, torch.utils.data.DataLoader([0]), ckpt_path=validate, verbose=False)
        trainer.fit(model, loaders, ckpt_path=resume)
        return model.seen

    return run


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("steps", [3, STEPS, STEPS + 2])
def test_a_run_that_asks_for_its_number_of_steps_resumes_with_the_batches_that_follow(fit, tmp_path, asks, steps):
    whole = fit(tmp_path / "run.ckpt", steps, asks=asks)
    assert_same(fit(resume=tmp_path / "run.ckpt", asks=asks), whole[steps:])


def test_a_checkpoint_that_was_saved_without_the_callback_and_several_loaders_are_restored(fit, tmp_path):
    whole = fit(tmp_path / "run.ckpt", 3, callbacks=(), seeds=(3, 4))
    assert_same(fit(resume=tmp_path / "run.ckpt", seeds=(3, 4)), whole[6:])


def test_a_checkpoint_that_was_read_to_validate_does_not_move_a_later_training(fit, tmp_path):
    whole = fit(tmp_path / "run.ckpt", 3)
    assert_same(fit(validate=tmp_path / "run.ckpt"), whole)


def test_another_number_of_loaders_than_of_states_is_refused(fit, tmp_path):
    fit(tmp_path / "run.ckpt", 3)
    with pytest.raises(ValueError, match=r"states of 1 training loaders, and this run has 2 .*: pass the loaders of"):
        fit(resume=tmp_path / "run.ckpt", seeds=(3, 4))


def test_the_state_of_another_loader_is_refused_and_not_dropped(fit, tmp_path):
    fit(tmp_path / "run.ckpt", 3)
    with pytest.raises(ValueError, match="the state is of another loader: seed is 3 there and 4 here"):
        fit(resume=tmp_path / "run.ckpt", seeds=(4,))


def test_a_checkpoint_without_the_states_of_loaders_is_warned_of(fit, tmp_path):
    fit(tmp_path / "run.ckpt", 3)
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=False)
    del checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    torch.save(checkpoint, tmp_path / "run.ckpt")
    with pytest.warns(UserWarning, match="the checkpoint has no states of loaders"):
        fit(resume=tmp_path / "run.ckpt")
