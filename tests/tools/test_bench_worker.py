"""Contenders in processes of their own."""

import os
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tools.bench.race import Options
from tools.bench.resources import process_tree, usage, used_between, wait_until_idle
from tools.bench.subsets import write_check_sets
from tools.bench.task import FailedError, NotInstalledError, RefusedError, Spec
from tools.bench.worker import WorkerHandle

MODULE = "tests.bench_contenders"


@pytest.fixture
def task(few_shards, tmp_path):
    return Options(few_shards / "train", (), 20, 1, 6, 0.1, tmp_path).task()


@pytest.mark.process
def test_what_a_contender_raises_comes_back_by_its_kind_and_the_process_lives_on(task):
    """One of each, all started before the first is asked: their start takes the time."""
    kinds = {
        "not_installed": (NotInstalledError, "pip install nothing-like-it"),
        "raises": (FailedError, "RuntimeError: out of luck"),
        "half_of_the_epoch": (RefusedError, "150 images"),
        "dies": (FailedError, "its process ended with exit code 7"),
    }
    with ExitStack() as stack:
        workers = {name: stack.enter_context(closing(WorkerHandle(Spec(f"{MODULE}:{name}", task)))) for name in kinds}
        for name, (kind, message) in kinds.items():
            with pytest.raises(kind, match=message):
                workers[name].start(5)
        with pytest.raises(NotInstalledError, match="pip install nothing-like-it"):
            workers["not_installed"].start(5)


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hangs", r"it gave no batch for 0\.5 s and was stopped; --timeout S waits longer"),
        ("hangs_closing", r"it did not end within 0\.5 s of being closed, and was stopped"),
    ],
)
def test_a_contender_that_hangs_is_stopped_with_all_that_it_started(task, monkeypatch, name, message):
    monkeypatch.setattr("tools.bench.worker.SHUTDOWN_TIMEOUT", 0.5)
    worker = WorkerHandle(Spec(f"{MODULE}:{name}", task))
    worker.start(0)
    worker.timeout = 0.5 if name == "hangs" else worker.timeout
    with pytest.raises(FailedError, match=message), closing(worker):
        worker.turn(0)
    child, deadline = Path(f"/proc/{(task.work / 'child').read_text()}/stat"), time.monotonic() + 300
    with suppress(OSError):  # it is gone, or nobody has waited for it yet
        while child.read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.01)


@pytest.mark.process
def test_a_contender_is_checked_starts_and_takes_turns_which_may_be_longer_than_the_timeout(task):
    """Batches are counted in all three: one that gives batches is not taken for one that hangs."""
    with closing(WorkerHandle(Spec(f"{MODULE}:takes_its_time", task))) as worker:
        answers, counts = [], [0]
        for ask in (lambda: worker.check(write_check_sets(task)), lambda: worker.start(0.2), lambda: worker.turn(0.1)):
            answers.append(ask())
            counts.append(worker.batches)
            worker.timeout = 1.5
    assert counts == sorted(set(counts))
    _, start, turn = answers
    assert start["first_epoch"]["images"] > 0
    assert start["set_up_seconds"] > 0
    assert start["memory"] > 50e6
    assert start["cpu"] > 0
    assert turn["rate"] > 0
    assert turn["taken"] > turn["images"]


@pytest.mark.process
@pytest.mark.parametrize(("kind", "name"), [("model", "mixed"), ("both", "mixed"), ("both", "whole")])
def test_a_model_is_trained_alone_and_on_a_loader_of_soft_targets_or_labels(task, kind, name):
    with closing(WorkerHandle(Spec(f"{MODULE}:{name}", task, kind, "small"))) as worker:
        worker.start(0.1)
        turn = worker.turn(0.1)
    assert 0 < turn["waited"] < turn["seconds"]


@pytest.mark.process
def test_a_step_passes_between_two_batches_in_which_the_loader_may_work(task):
    with closing(WorkerHandle(Spec(f"{MODULE}:whole", task, step_ms=30))) as worker:
        worker.start(0.1)
        turn = worker.turn(0.3)
    assert turn["p50"] >= 0.03
    assert turn["seconds"] - turn["waited"] >= 0.03 * turn["batches"]


def test_the_use_of_a_tree_counts_children_and_those_that_ended():
    before = usage()
    child = os.fork()
    if not child:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        os.read(os.open("/dev/zero", os.O_RDONLY), 1 << 20)
        os._exit(0)
    assert str(child) in [str(process.pid) for process in process_tree()]
    os.waitpid(child, 0)
    used = used_between(before, usage())
    assert 0.2 <= used["cpu"] < 30
    assert used["by_read"] >= 1 << 20
    assert used["peak"] >= used["memory"] > 0


def test_a_process_that_works_is_not_idle(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("tools.bench.resources._cpu_seconds", lambda: next(seconds))
    assert not wait_until_idle(0.3)
    monkeypatch.setattr("tools.bench.resources._cpu_seconds", lambda: 7.0)
    assert wait_until_idle(0.3)
