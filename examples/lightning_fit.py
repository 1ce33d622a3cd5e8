"""Lightning: Trainer.fit takes the loaders as they are, and its checkpoints keep how far in its epoch training is.

python examples/lightning_fit.py runs/demo/shards --epochs 2    # stop it at any moment: the same command goes on
"""

import os

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from shared import arguments, small_network
from torch.nn.functional import cross_entropy

from fdt_pipeline import FDTLoader
from fdt_pipeline.lightning import RestoreLoaders


class Classifier(lightning.LightningModule):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.network = small_network(channels, num_classes)

    def training_step(self, batch, _):
        images, targets = batch
        loss = cross_entropy(self.network(images), targets)
        self.print(f"step {self.global_step + 1}: loss {loss.item():.6f}")
        return loss

    def validation_step(self, batch, _):
        images, labels, weights = batch  # weight 0: it only fills the last batch up
        right, total = weights[self.network(images).argmax(1) == labels].sum(), weights.sum()
        # Lightning weighs what it averages by batch_size, so this is exact, over several ranks as well.
        self.log("accuracy", right / total.clamp(min=1), batch_size=int(total), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main():
    args = arguments(__doc__, checkpoint="runs/lightning.ckpt")
    num_devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun, whose ranks the loaders take for theirs
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    loader = FDTLoader(args.shards / "train", 64 // num_devices, last_batch="drop", device=device)
    test_loader = FDTLoader(args.shards / "test", 50, train=False, last_batch="fill", weights=True, device=device)
    saving = ModelCheckpoint(args.checkpoint.parent, args.checkpoint.stem, every_n_train_steps=3)
    lightning.seed_everything(0)
    callbacks = [saving, RestoreLoaders()]  # where a schedule asks for estimated_stepping_batches, Lightning does not
    options = {"devices": num_devices, "callbacks": callbacks, "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=args.epochs, max_steps=args.steps or -1, **options)
    model = Classifier(loader.shape[0], loader.num_classes)
    resumed = args.checkpoint if args.checkpoint.exists() else None  # it calls loader.load_state_dict as well
    trainer.fit(model, loader, test_loader, ckpt_path=resumed)
    (metrics,) = trainer.validate(model, test_loader, verbose=False)
    model.print(f"accuracy {metrics['accuracy']:.4f}")
    trainer.strategy.barrier()  # so that no thread of gloo still frees a tensor when Python ends


if __name__ == "__main__":
    main()
