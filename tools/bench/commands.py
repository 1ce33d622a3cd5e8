"""What `python -m tools bench` does, by its options."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from fdt_pipeline.machine import available_cpus
from fdt_pipeline.storage.atomic import atomic_file

from .comparing import compare, lost, told
from .contenders import ENTRIES
from .entries import choose
from .markdown import filled, read_results, rendered
from .noise import Noise
from .options import Options
from .proving import AGAIN, ITSELF, LOST, PLANTED, prove
from .race import race
from .report import report
from .running import Bench
from .seat import SeatProcess
from .spec import Spec
from .task import MIXING


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list()
    if arguments.compare:
        return _compare(arguments.compare[0], arguments.compare[1], arguments.bound)
    if arguments.render or arguments.into:
        return _render(arguments)
    if arguments.shards is None:
        raise ValueError("expected SHARDS, a folder of one set of shards")
    options = _options(arguments)
    return _self_test(options) if arguments.self_test else _bench(arguments, options)


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        shards=arguments.shards,
        contenders=tuple(choose(arguments.contenders, arguments.contender, arguments.mixing)),
        batch_size=arguments.batch_size,
        workers=available_cpus() if arguments.workers is None else arguments.workers,
        repeats=arguments.repeats,
        seconds=arguments.seconds,
        work=arguments.work,
        device=arguments.device,
        size=tuple(arguments.size) if arguments.size else None,
        model=arguments.model,
        widest=arguments.widest,
        timeout=arguments.timeout,
        classes=tuple(arguments.classes),
        batch_sizes=tuple(arguments.batch_sizes),
    )


def _bench(arguments: argparse.Namespace, options: Options) -> int:
    """1 where a contender was refused or failed."""
    results = Bench(options).run(["python", "-m", "tools", *arguments.argv])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(arguments.json) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode("ascii"))
    print("\n".join(report(results)))
    if arguments.plot:
        from .plot import draw

        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(results, arguments.plot)
    return 1 if any(one["status"] in ("refused", "failed") for one in results["contenders"]) else 0


def _self_test(options: Options) -> int:
    name, task = options.contenders[0], options.task()
    specs = {ITSELF: Spec(name, task), AGAIN: Spec(name, task), PLANTED: Spec(name, task, lost=LOST)}
    noise = Noise()
    makers = {who: partial(SeatProcess, spec, options.timeout) for who, spec in specs.items()}
    proof = prove(race(makers, options.repeats, options.seconds, noise.measure))
    print("\n".join([f"{name}:", *proof.lines()]))
    return 0 if proof.holds else 1


def _list() -> int:
    width = max((len(entry.name) for entry in ENTRIES), default=0)
    for entry in ENTRIES:
        print(f"{entry.name:{width}}  {MIXING[entry.mixing]:16}  {entry.note}".rstrip())
    return 0


def _compare(old: Path, new: Path, bound: float) -> int:
    before, after = read_results(old), read_results(new)
    changes = compare(before, after)
    print("\n".join(told(before, after, changes, bound)))
    slower = any(change.verdict(bound) == "regression" for change in changes)
    return 1 if slower or lost(before, after) else 0


def _render(arguments: argparse.Namespace) -> int:
    if arguments.into:
        page = filled(arguments.into.read_text(), arguments.into.parent)
        with atomic_file(arguments.into) as file:
            file.write(page.encode())
    else:
        print(rendered(list(map(str, arguments.render))), end="")
    return 0
