"""The whole of a bench: check, race, the bounds of a trainer, and the sweeps; all as one JSON value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.loader.options import PAPER_MEAN, PAPER_STD
from fdt_pipeline.shards import Manifest, read_manifest
from train.environment import hardware, versions

from .contenders import find_entry
from .race import Noise, Raced, caught, race, say
from .results import FORMAT, TOO_WIDE, measured, summarize
from .subsets import CheckSets, relabelled, write_check_sets
from .task import MODELS, TIMEOUT, Spec, Task
from .worker import WorkerHandle

FEWEST_REPEATS = 2
PACKAGES = ("pillow", "scipy", "timm", "litdata", "mosaicml-streaming", "ffcv")


@dataclass(frozen=True)
class Options:
    """What a bench is asked for.

    contenders: names, the first one is what the others are compared with. workers: processes or threads of each.
    repeats of `seconds` each, after one that is left out. widest: how far an interval may reach from its median.
    timeout: seconds without a batch after which a contender is stopped. classes, batch_sizes: with which to race
    again. work: where contenders keep their own formats.
    """

    shards: Path
    contenders: tuple[str, ...]
    batch_size: int
    workers: int
    repeats: int
    seconds: float
    work: Path
    device: str = "cpu"
    size: tuple[int, int] | None = None
    model: str | None = None
    widest: float = TOO_WIDE
    timeout: float = TIMEOUT
    classes: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = {"batch-size": self.batch_size, "workers": self.workers, "classes": min(self.classes, default=1)}
        counts |= {"batch-sizes": min(self.batch_sizes, default=1)}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.repeats < FEWEST_REPEATS:
            raise ValueError(f"--repeats must be at least {FEWEST_REPEATS} for an interval, got {self.repeats}")
        for name in ("seconds", "widest", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.model not in (None, *MODELS):
            raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {self.model}")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch sees no GPU; leave --device out")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values, without those that depend on where things lie."""
        found = {key: value for key, value in vars(self).items() if key not in ("shards", "work", "contenders")}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def task(self, num_classes: int | None = None, batch_size: int | None = None) -> Task:
        """The task on these shards, or on the same images in `num_classes` classes.

        ValueError for images of different sizes without --size.
        """
        manifest = read_manifest(self.shards)
        if manifest.shape is None and self.size is None:
            raise ValueError(f"{self.shards} holds images of different sizes: pass --size H W")
        shards = self.shards
        if num_classes is not None:
            shards = relabelled(shards, num_classes, self.work / manifest.sha256[:12])
            manifest = read_manifest(shards)
        work = self.work / manifest.sha256[:12]
        work.mkdir(parents=True, exist_ok=True)
        mean, std = PAPER_MEAN[: manifest.channels], (PAPER_STD,) * manifest.channels
        return Task(
            shards, work, manifest, batch_size or self.batch_size, self.workers, self.device,
            mean=tuple(mean), std=std, size=self.size,
        )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """new_worker: gives a contender its process, with the seconds without a batch after which it is stopped."""

    options: Options
    new_worker: Callable[[Spec, float], Any] = WorkerHandle

    def run(self, command: Sequence[str]) -> dict[str, Any]:
        """Measure everything, and return it as JSON values. command: noted with them."""
        options, task, noise = self.options, self.options.task(), Noise()
        checked = self._check(task)
        raced = self._race({name: Spec(name, task) for name, one in checked.items() if one.status == "measured"}, noise)
        contenders = [_describe(name, checked[name], raced.get(name, checked[name]), task) for name in checked]
        summarize(contenders, options.widest)
        names = [one["name"] for one in measured(contenders)]
        by_classes = {str(c): options.task(num_classes=c) for c in options.classes}
        by_batch = {str(n): options.task(batch_size=n) for n in options.batch_sizes}

        def sweep(tasks: Mapping[str, Task]) -> dict[str, list[dict[str, Any]]]:
            return {
                value: self._race_again({name: Spec(name, task) for name in names}, noise)
                for value, task in tasks.items()
            }

        return {
            "format": FORMAT,
            "command": list(command),
            "machine": hardware(torch.device(options.device)),
            "versions": versions() | {name: _version(name) for name in PACKAGES},
            "data": _describe_data(task.manifest),
            "options": options.to_dict(),
            "contenders": contenders,
            "training": self._train(task, names, noise) if options.model else [],
            "sweeps": {"classes": sweep(by_classes), "batch_sizes": sweep(by_batch)},
            "noise": noise.to_dict(),
        }

    def _check(self, task: Task) -> dict[str, Raced]:
        """Check every contender, and note why one may not race."""
        sets, found = write_check_sets(task), {}
        for name in self.options.contenders:
            one = found[name] = Raced()
            if find_entry(name).needs_gpu and torch.device(task.device).type != "cuda":
                one.status, one.reason = "left out", "it runs on GPUs alone"
                continue
            say(f"{name}: check")
            with caught(one):
                one.check = self._check_one(Spec(name, task), sets)
            if one.status != "measured":
                say(f"{name}: {one.status}: {one.reason}")
        return found

    def _check_one(self, spec: Spec, sets: CheckSets) -> dict[str, Any]:
        worker = self.new_worker(spec, self.options.timeout)
        try:
            return worker.check(sets)
        finally:
            worker.close()

    def _race(self, specs: Mapping[str, Spec], noise: Noise) -> dict[str, Raced]:
        makers: dict[str, Callable[[], WorkerHandle]] = {
            name: partial(self.new_worker, spec, self.options.timeout) for name, spec in specs.items()
        }
        return race(makers, self.options.repeats, self.options.seconds, noise.measure)

    def _race_again(self, specs: Mapping[str, Spec], noise: Noise) -> list[dict[str, Any]]:
        """Race what has been checked before."""
        raced = self._race(specs, noise)
        found = [
            _describe(spec.contender, raced[name], raced[name], spec.task) | {"name": name}
            for name, spec in specs.items()
        ]
        summarize(found, self.options.widest)
        return found

    def _train(self, task: Task, names: Sequence[str], noise: Noise) -> list[dict[str, Any]]:
        """Race the model with no loader, and then with each."""
        model = self.options.model
        specs = {f"{model}, the same batch again": Spec(names[0], task, "model", model)}
        return self._race_again(specs | {f"{model}, {name}": Spec(name, task, "both", model) for name in names}, noise)


def _describe(name: str, checked: Raced, raced: Raced, task: Task) -> dict[str, Any]:
    """A contender with all that was found."""
    entry = find_entry(name)
    return {
        "name": name,
        "mixing": entry.mixing,
        "note": entry.note,
        "images_per_output": round(entry.images_per_output(task.num_classes), 3),
        "status": raced.status,
        "reason": raced.reason,
        "check": checked.check,
        "start": raced.start,
        "turns": raced.turns,
    }


def _describe_data(manifest: Manifest) -> dict[str, Any]:
    """Which images, without where they lie."""
    return {
        "kind": manifest.kind,
        "split": manifest.split,
        "samples": manifest.num_samples,
        "classes": len(manifest.classes),
        "shape": list(manifest.shape) if manifest.shape else None,
        "encoding": manifest.encoding,
        "megabytes": round(sum(shard.num_bytes for shard in manifest.shards) / 1e6, 1),
        "manifest_sha256": manifest.sha256,
    }


def _version(name: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
