"""The whole of a bench: check, race, the bounds of a trainer, and the sweeps; all as one JSON value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from train.environment import hardware

from .checks import CheckSets, write_check_sets
from .entries import find_entry
from .noise import Noise
from .options import Options, describe_data
from .package_versions import package_versions
from .race import Raced, caught, race, say
from .relabelling import relabelled
from .seat import Seat, SeatProcess
from .spec import Spec
from .summary import summarize
from .task import Task

FORMAT = 1
NewSeat = Callable[[Spec, float], Any]


@dataclass(frozen=True)
class Bench:
    """new_seat: gives a contender its process, with the seconds without a batch after which it is stopped.
    noise: measured in each round."""

    options: Options
    new_seat: NewSeat = SeatProcess
    noise: Noise | None = None

    def run(self, command: Sequence[str]) -> dict[str, Any]:
        """Everything, as JSON values. command: noted with them."""
        options, task = self.options, self.options.task()
        checked = self.checked(task)
        noise = self.noise or Noise()
        raced = self._race({name: Spec(name, task) for name in fine(checked)}, noise)
        contenders = [describe(name, checked[name], raced.get(name), task) for name in checked]
        summarize(contenders, options.widest)
        names = [one["name"] for one in contenders if one["status"] == "measured"]
        return {
            "format": FORMAT,
            "command": list(command),
            "machine": hardware(torch.device(options.device)),
            "versions": package_versions(),
            "data": describe_data(task.manifest),
            "options": options.to_dict(),
            "contenders": contenders,
            "training": self._training(task, names, noise) if options.model else [],
            "sweeps": self._sweeps(names, noise),
            "noise": noise.to_dict(),
        }

    def checked(self, task: Task) -> dict[str, Raced]:
        """Every contender, with why it may not race."""
        sets, found = write_check_sets(task), {}
        for name in self.options.contenders:
            found[name] = Raced()
            if find_entry(name).needs_gpu and torch.device(task.device).type != "cuda":
                found[name].status, found[name].reason = "left out", "it runs on GPUs alone"
                continue
            say(f"{name}: check")
            with caught(found[name]):
                found[name].check = self._check(Spec(name, task), sets)
            if found[name].status != "measured":
                say(f"{name}: {found[name].status}: {found[name].reason}")
        return found

    def _check(self, spec: Spec, sets: CheckSets) -> dict[str, Any]:
        seat = self.new_seat(spec, self.options.timeout)
        try:
            return seat.check(sets)
        finally:
            seat.close()

    def _race(self, specs: Mapping[str, Spec], noise: Noise) -> dict[str, Raced]:
        timeout = self.options.timeout
        makers: dict[str, Callable[[], Seat]] = {
            name: partial(self.new_seat, spec, timeout) for name, spec in specs.items()
        }
        return race(makers, self.options.repeats, self.options.seconds, noise.measure)

    def _training(self, task: Task, names: Sequence[str], noise: Noise) -> list[dict[str, Any]]:
        """The model with no loader, first, and then with each."""
        model = self.options.model
        alone = f"{model}, the same batch again"
        specs = {alone: Spec(names[0], task, "model", model)}
        specs |= {f"{model}, {name}": Spec(name, task, "both", model) for name in names}
        raced = self._race(specs, noise)
        found = [
            describe(spec.contender, raced[name], raced[name], task) | {"name": name} for name, spec in specs.items()
        ]
        summarize(found, self.options.widest)
        return found

    def _sweeps(self, names: Sequence[str], noise: Noise) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """ "classes" and "batch_sizes" -> value -> contenders."""
        options = self.options
        by_classes = {str(c): options.task(relabelled(options, c)) for c in options.classes}
        by_batch = {str(n): options.task(batch_size=n) for n in options.batch_sizes}
        return {
            "classes": {value: self._raced_on(task, names, noise) for value, task in by_classes.items()},
            "batch_sizes": {value: self._raced_on(task, names, noise) for value, task in by_batch.items()},
        }

    def _raced_on(self, task: Task, names: Sequence[str], noise: Noise) -> list[dict[str, Any]]:
        raced = self._race({name: Spec(name, task) for name in names}, noise)
        found = [describe(name, raced[name], raced[name], task) for name in names]
        summarize(found, self.options.widest)
        return found


def fine(checked: Mapping[str, Raced]) -> list[str]:
    return [name for name, found in checked.items() if found.status == "measured"]


def describe(name: str, checked: Raced, raced: Raced | None, task: Task) -> dict[str, Any]:
    """A contender with all that was found; raced: None where the check had ended it."""
    entry, last = find_entry(name), raced or checked
    return {
        "name": name,
        "mixing": entry.mixing,
        "note": entry.note,
        "images_per_output": round(entry.images_per_output(task.num_classes), 3),
        "status": last.status,
        "reason": last.reason,
        "check": checked.check,
        "start": last.start,
        "turns": last.turns,
    }
