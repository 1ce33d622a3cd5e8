"""A bench: contenders are checked, set up once, and have their turns in interleaved rounds; all as one JSON value.

Beside the race of the loaders there are the bounds of a trainer, and the sweeps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.loader.options import PAPER_MEAN, PAPER_STD
from fdt_pipeline.shards import Manifest, read_manifest
from train.environment import hardware, versions

from ..rounds import turn_order
from .contenders import find_entry
from .resources import Noise
from .results import FORMAT, TOO_WIDE, measured, summarize
from .subsets import relabelled, write_check_sets
from .task import MODELS, TIMEOUT, FailedError, NotInstalledError, RefusedError, Spec, Task
from .worker import WorkerHandle

FEWEST_REPEATS = 2
PLACES = ("shards", "work", "contenders")  # options that are not noted: where things lie, and who races
FIRST_EPOCH = 5  # times the seconds of a turn, at most
PACKAGES = ("pillow", "scipy", "timm", "litdata", "mosaicml-streaming", "ffcv")


@dataclass(frozen=True)
class Options:
    """What a bench is asked for.

    contenders: names, the first one is what the others are compared with. workers: processes or threads of each.
    repeats of `seconds` each, after one that is left out. widest: how far an interval may reach from its median.
    timeout: seconds without a batch after which a contender is stopped. classes, batch_sizes: with which to race
    again. work: where contenders keep their own formats. crop: side of the random resized crops that all contenders
    give, instead of shifted images. step: milliseconds that pass after each batch, as if a GPU trained on it.
    """

    shards: Path
    contenders: Sequence[str]
    batch_size: int
    workers: int
    repeats: int
    seconds: float
    work: Path
    device: str = "cpu"
    size: tuple[int, int] | None = None
    crop: int | None = None
    step: float | None = None
    model: str | None = None
    widest: float = TOO_WIDE
    timeout: float = TIMEOUT
    classes: Sequence[int] = ()
    batch_sizes: Sequence[int] = ()

    def __post_init__(self) -> None:
        counts = {"batch-size": self.batch_size, "workers": self.workers, "classes": min(self.classes, default=1)}
        counts |= {"batch-sizes": min(self.batch_sizes, default=1), "crop": 1 if self.crop is None else self.crop}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.repeats < FEWEST_REPEATS:
            raise ValueError(f"--repeats must be at least {FEWEST_REPEATS} for an interval, got {self.repeats}")
        for name in ("seconds", "widest", "timeout", "step"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.model not in (None, *MODELS):
            raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {self.model}")
        for name, other in (("crop", "size"), ("step", "model")):
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise ValueError(f"--{name} and --{other} exclude each other: leave one of them out")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch sees no GPU; leave --device out")

    def task(self, num_classes: int | None = None, batch_size: int | None = None) -> Task:
        """The task on these shards, or on the same images in `num_classes` classes.

        ValueError for images of different sizes without --size or --crop, and for arrays with --crop.
        """
        manifest = read_manifest(self.shards)
        size = (self.crop, self.crop) if self.crop else self.size
        if manifest.shape is None and size is None:
            raise ValueError(f"{self.shards} holds images of different sizes: pass --size H W, or --crop N")
        if self.crop and manifest.encoding == "raw":
            raise ValueError(
                f"{self.shards} holds arrays: --crop is for image files, whose decoders crop; use --size H W"
            )
        shards = self.shards
        if num_classes is not None:
            shards = relabelled(shards, num_classes, self.work / manifest.sha256[:12])
            manifest = read_manifest(shards)
        work = self.work / manifest.sha256[:12]
        work.mkdir(parents=True, exist_ok=True)
        mean, std = PAPER_MEAN[: manifest.channels], (PAPER_STD,) * manifest.channels
        return Task(
            shards, work, manifest, batch_size or self.batch_size, self.workers, self.device,
            pad=0 if self.crop else Task.pad, mean=tuple(mean), std=std, size=size, crop=self.crop is not None,
        )  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """new_worker: gives a contender its process, with the seconds without a batch after which it is stopped."""

    options: Options
    new_worker: Callable[[Spec, float], Any] = WorkerHandle

    def run(self, command: Sequence[str]) -> dict[str, Any]:
        """Measure everything, and return it as JSON values. command: noted with them."""
        options, task, noise = self.options, self.options.task(), Noise()
        checked = self._check(task)

        def raced(specs: Mapping[str, Spec]) -> list[dict[str, Any]]:
            """Race what has passed its check."""
            makers = {name: partial(self.new_worker, spec, options.timeout) for name, spec in specs.items()}
            found = race(makers, options.repeats, options.seconds, noise.measure)
            contenders = [_describe(name, spec, found[name]) for name, spec in specs.items()]
            summarize(contenders, options.widest)
            return contenders

        passed = raced(
            {name: Spec(name, task, step_ms=options.step) for name, one in checked.items() if one.status == "measured"}
        )
        found = {one["name"]: one | {"check": checked[one["name"]].check} for one in passed}
        contenders = [found.get(name) or _describe(name, Spec(name, task), one) for name, one in checked.items()]
        names = [one["name"] for one in measured(contenders)]

        # All tasks are made before the first race of them: an option that does not fit is said at once.
        sweeps = {
            "classes": {str(c): options.task(num_classes=c) for c in options.classes},
            "batch_sizes": {str(n): options.task(batch_size=n) for n in options.batch_sizes},
        }
        training = {}
        if names and (model := options.model):  # alone, and then with each loader
            training = {f"{model}, the same batch again": Spec(names[0], task, "model", model)}
            training |= {f"{model}, {name}": Spec(name, task, "both", model) for name in names}
        return {
            "format": FORMAT,
            "command": list(command),
            "machine": hardware(torch.device(options.device)),
            "versions": versions(*PACKAGES),
            "data": _describe_data(task.manifest),
            "options": {key: value for key, value in vars(options).items() if key not in PLACES},
            "contenders": contenders,
            "training": raced(training) if training else [],
            "sweeps": {
                name: {
                    value: raced({name: Spec(name, other, step_ms=options.step) for name in names})
                    for value, other in tasks.items()
                }
                for name, tasks in sweeps.items()
            },
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
            with caught(one), closing(self.new_worker(Spec(name, task), self.options.timeout)) as worker:
                one.check = worker.check(sets)
            if one.status != "measured":
                say(f"{name}: {one.status}: {one.reason}")
        return found


def _describe(name: str, spec: Spec, raced: Raced) -> dict[str, Any]:
    """A contender with all that was found."""
    entry = find_entry(spec.contender)
    per_output = round(entry.images_per_output(spec.task.num_classes), 3)
    about = {"name": name, "mixing": entry.mixing, "note": entry.note, "images_per_output": per_output}
    return {**about, **vars(raced)}


def _describe_data(manifest: Manifest) -> dict[str, Any]:
    """Which images, without where they lie."""
    megabytes = round(sum(shard.num_bytes for shard in manifest.shards) / 1e6, 1)
    counts = {"samples": manifest.num_samples, "classes": len(manifest.classes), "megabytes": megabytes}
    images = {"shape": list(manifest.shape) if manifest.shape else None, "encoding": manifest.encoding}
    return {"kind": manifest.kind, "split": manifest.split, **counts, **images, "manifest_sha256": manifest.sha256}


@dataclass
class Raced:
    """What a contender did. check: what was seen before. start: set-up and first epoch. turns: one a round.

    status: "measured", "refused", "not installed", "failed" or "left out", with the reason.
    """

    status: str = "measured"
    reason: str = ""
    check: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)


def race(
    makers: Mapping[str, Callable[[], Any]], repeats: int, seconds: float, each_round: Callable[[], None] = lambda: None
) -> dict[str, Raced]:
    """Name -> what the contender did. makers: of their workers. A contender that fails is dropped.

    The first round touches memory for the first time and is left out.
    """
    found = {name: Raced() for name in makers}
    with ExitStack() as stack:
        workers: dict[str, Any] = {}
        for name, make in makers.items():
            say(f"{name}: set up")
            with caught(found[name]):
                workers[name] = make()
                stack.callback(_close, workers[name], found[name])
                found[name].start = workers[name].start(FIRST_EPOCH * seconds)
        for number in range(repeats + 1):
            each_round()
            for name in turn_order([name for name in workers if found[name].status == "measured"], number):
                with caught(found[name]):
                    turn = workers[name].turn(seconds)
                    say(f"round {number} of {repeats}: {name}: {turn['rate']:.0f} images/s")
                    if number:
                        found[name].turns.append(turn)
    return found


def _close(worker: Any, raced: Raced) -> None:
    """Close a worker. The first reason why it is not measured stays."""
    with caught(raced if raced.status == "measured" else Raced()):
        worker.close()


@contextmanager
def caught(raced: Raced) -> Iterator[None]:
    """Note why a contender is not measured."""
    try:
        yield
    except (RefusedError, NotInstalledError, FailedError) as error:
        kinds = {RefusedError: "refused", NotInstalledError: "not installed", FailedError: "failed"}
        raced.status, raced.reason = kinds[type(error)], str(error)
