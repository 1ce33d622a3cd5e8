"""`fit`: train one recipe on a folder of shards, with a checkpoint after every epoch.

A run is a function of (recipe, shards, machine): on the CPU a run that was killed and resumed ends with the very
weights of one that was not. What it leaves in `out` is listed in train/README.md.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdt_pipeline.losses import check_eps
from train import ddp, files, setup
from train.accelerate import Compiled, network_of_step
from train.environment import hardware, versions
from train.files import Log
from train.precision import amp_dtype
from train.recipes import Recipe
from train.step import (
    TrainStep,
    check_finite,
    check_weights,
    checked_figures,
    load_optimizer,
    make_optimizer,
    make_scaler,
)

# Steps whose losses are checked and logged together, as each look waits for a GPU; an error names the very step.
LOG_EVERY = 50
# Seconds between checkpoints. On a GPU an epoch of CIFAR-10 takes 2 s, and writing 250 MB of ResNet-34 would add half.
CHECKPOINT_EVERY = {"cpu": 0.0, "cuda": 20.0}


def _no_log(*_: Any, **__: Any) -> None:
    """On the ranks that write no files."""


@dataclass
class Progress:
    """How far a run is: the next epoch, optimizer steps done, accuracy after each epoch, the best, seconds spent."""

    epoch: int = 0
    step: int = 0
    accuracies: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    seconds: float = 0.0


def fit(
    recipe: Recipe,
    data: Path,
    out: Path,
    resume: bool = False,
    device: str | None = None,
    compile_it: bool | None = None,
    mixed: bool = False,
) -> dict[str, Any]:
    """Train `recipe` on data/train, evaluate on data/test after every epoch; returns (and writes) results.json.

    Under torchrun one run of all its processes (ddp.py), whose first one writes. compile_it: see accelerate.py. mixed:
    bfloat16 on a CPU too (precision.py).
    ValueError for an `out` that holds a run already (unless resume), or the run of another recipe or other shards, and
    for compile_it on several ranks.
    NonFiniteLossError, naming the step, where the loss is no longer a number.
    """
    files.check_folder(out)
    if compile_it and ddp.this_rank().world_size > 1:
        raise ValueError("--compile is for one process: leave it out under torchrun")
    with ddp.process_group(setup.pick_device(device)) as device_of_rank:
        run = Run(recipe, data, out, device_of_rank, compile_it, mixed)
        checkpoint = out / files.CHECKPOINT
        if checkpoint.exists() and not resume:
            raise ValueError(f"{out} already holds a run: pass --resume to go on with it, or another --out")
        saved = ddp.from_first_rank(lambda: files.read_checkpoint(checkpoint) if checkpoint.exists() else None)
        if saved is not None:
            with files.fitting(checkpoint):
                run.load_state(saved)
        return run.train()


class Run:
    """Model, optimizer, loaders and progress of one recipe; on several ranks, what all of them do alike.

    `model` is what is saved and evaluated; `network` is what a step calls: the same, or the model with its gradients
    averaged over the ranks.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        device: torch.device,
        compile_it: bool | None = None,
        mixed: bool = False,
    ) -> None:
        self.recipe, self.data, self.out, self.device, self.mixed = recipe, data, out, device, mixed
        self.loader = setup.make_loader(recipe, setup.train_folder(data), device, train=True)
        tests = setup.test_folder(data)
        self.test_loader = setup.make_loader(recipe, tests, device, train=False) if tests else None
        if self.test_loader and self.test_loader.classes != self.loader.classes:
            raise ValueError(
                f"{tests} has other classes than {setup.train_folder(data)}, so their labels differ in meaning: make "
                "it again beside that folder, whose classes it then takes"
            )
        if recipe.loss == "multi-label":
            check_eps(recipe.loss_eps, self.loader.num_classes)
        self.loss = setup.make_loss(recipe)
        torch.manual_seed(recipe.seed)
        self.model = setup.make_model(recipe.to_dict(), self.loader.num_classes, self.loader.shape[0], device)
        if setup.is_own(recipe.model):
            setup.check_logits(self.model, self.loader.shape, self.loader.num_classes, device)
        self.network = ddp.data_parallel(self.model, device)
        self.optimizer = make_optimizer(self.model, recipe.lr, recipe.momentum, recipe.weight_decay, device)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, recipe.lr_drop_every, gamma=0.1)
        self.scaler = make_scaler(device)
        alone = self.network is self.model
        called = network_of_step(self.model, device, self.num_steps, compile_it) if alone else self.network
        self.compiled = isinstance(called, Compiled)
        graph = device.type == "cuda" and alone
        self.step = TrainStep(called, self.loss, self.optimizer, self.scaler, device, graph, mixed)
        self.progress = Progress()
        self._best_state: dict[str, Any] | None = None  # not written yet
        self._written = time.perf_counter()

    @property
    def num_steps(self) -> int:
        whole = self.recipe.epochs * len(self.loader)
        return min(whole, self.recipe.max_steps or whole)

    @property
    def precision(self) -> str:
        """That a step computes in."""
        return str(amp_dtype(self.device, self.mixed) or torch.float32).removeprefix("torch.")

    @property
    def finished(self) -> bool:
        return self.progress.epoch >= self.recipe.epochs or self.progress.step >= self.num_steps

    def train(self) -> dict[str, Any]:
        writes = ddp.is_first_rank()
        if writes:
            self.out.mkdir(parents=True, exist_ok=True)
            files.write_json(self.out / files.CONFIG, self.config())
        if not self.finished:
            step = self.progress.step
            bar = tqdm(desc=self.recipe.name, total=self.num_steps, initial=step, unit="step", disable=not writes)
            with files.run_log(self.out, step) if writes else nullcontext(_no_log) as log, bar:
                while not self.finished:
                    self._epoch(log, bar)
        results = self.results()
        if writes:
            files.write_json(self.out / files.RESULTS, results)
        return results

    def _epoch(self, log: Log, bar: tqdm[Any]) -> None:
        start, progress = time.perf_counter(), self.progress
        waiting: list[tuple[Tensor, Tensor]] = []
        self.model.train()
        self.loader.set_epoch(progress.epoch)
        for images, targets in self.loader:
            if progress.step >= self.num_steps:
                break
            waiting.append(self.step(images, targets))
            progress.step += 1
            bar.update()
            if len(waiting) == LOG_EVERY:
                self._log_means(log, waiting)
                waiting = []
        self._log_means(log, waiting)
        self.schedule.step()
        check_weights(self.model, progress.step)
        progress.epoch += 1
        if self.test_loader:
            accuracy, loss = setup.evaluate(self.model, self.test_loader, precise=self.finished, mixed=self.mixed)
            check_finite(progress.step, "test loss after", loss)
            log("test", progress.step, progress.epoch - 1, accuracy=accuracy, loss=loss)
            self._keep_best(accuracy)
            bar.set_postfix(test=f"{100 * accuracy:.2f}%")
        progress.seconds += time.perf_counter() - start
        if self.finished or time.perf_counter() - self._written >= CHECKPOINT_EVERY[self.device.type]:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if ddp.is_first_rank():
            if self._best_state is not None:
                files.write_checkpoint(self.out / files.BEST, self._best_state)
            files.write_checkpoint(self.out / files.CHECKPOINT, self.state())
        self._best_state, self._written = None, time.perf_counter()

    def _log_means(self, log: Log, waiting: list[tuple[Tensor, Tensor]]) -> None:
        """Checks the (loss, KL) of the steps since the last record, and logs their means."""
        if waiting:
            step = self.progress.step
            figures = checked_figures(step - len(waiting) + 1, waiting)
            loss, kl = (sum(values) / len(waiting) for values in zip(*figures, strict=True))
            log("train", step, self.progress.epoch, loss=loss, kl=kl, lr=self.optimizer.param_groups[0]["lr"])

    def _keep_best(self, accuracy: float) -> None:
        progress = self.progress
        is_best = accuracy > max(progress.accuracies, default=-1.0)
        progress.accuracies.append(accuracy)
        if is_best:
            progress.best_epoch = progress.epoch - 1
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self._best_state = {"recipe": self.recipe.to_dict(), "model": weights, "epoch": progress.best_epoch}

    def config(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "classes": self.loader.classes,
            "in_channels": self.loader.shape[0],
            "image_size": list(self.loader.shape[1:]),
            "normalization": {"mean": list(self.loader.mean), "std": list(self.loader.std)},
            "data": str(self.data.resolve()),
            "shards": self._fingerprint(),
        }

    def results(self) -> dict[str, Any]:
        progress = self.progress
        last = progress.accuracies[-1] if progress.accuracies else None
        return {
            **{key: value for key, value in self.config().items() if key != "data"},  # a path of this machine
            "weights": files.hash_weights(self.model.state_dict()),
            "steps": progress.step,
            "final": {"epoch": progress.epoch - 1, "accuracy": last},
            "best": {"epoch": progress.best_epoch, "accuracy": max(progress.accuracies, default=None)},
            "accuracies": progress.accuracies,
            "seconds": round(progress.seconds, 1),
            "mode": self.loader.mode,
            "ranks": ddp.this_rank().world_size,
            "compiled": self.compiled,
            "precision": self.precision,
            "hardware": hardware(self.device),
            "versions": versions(),
        }

    def state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "shards": self._fingerprint(),
            "precision_on_cpu": self.precision if self.device.type == "cpu" else None,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """ValueError, naming the fields, where the checkpoint is of another recipe, precision or other shards."""
        files.check_same("recipe", state["recipe"], self.recipe.to_dict())
        files.check_same("shards", state["shards"], self._fingerprint())
        began_in = state.get("precision_on_cpu")  # a GPU has no choice, and older checkpoints do not say
        if began_in and self.device.type == "cpu":
            files.check_same("precision", {"precision": began_in}, {"precision": self.precision})
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty where the loss was not scaled: on a CPU, or with bfloat16
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])

    def _fingerprint(self) -> dict[str, str]:
        loaders = {"train": self.loader, "test": self.test_loader}
        return {split: loader.manifest.sha256 for split, loader in loaders.items() if loader}
