"""Contenders in processes of their own."""

import os
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tools.bench.contenders import choose, find_entry
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
        ("hangs", r"it gave no batch for 0\.5 s and was stopped; --timeout S"),
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
    wait_for_end(int((task.work / "child").read_text()))


@pytest.mark.process
def test_a_contender_that_gives_batches_may_take_longer_than_the_timeout(task):
    """Eight batches of 0.4 s."""
    with closing(WorkerHandle(Spec(f"{MODULE}:takes_its_time", task))) as worker:
        worker.start(0)
        worker.timeout = 1.5
        assert worker.turn(0)["taken"] >= 8


@pytest.mark.process
def test_a_contender_is_checked_starts_and_takes_its_turns_and_its_batches_are_counted(task):
    """They are counted so that none of the three is taken for a contender that hangs."""
    with closing(WorkerHandle(Spec(f"{MODULE}:whole", task))) as worker:
        answers, counts = [], [0]
        for ask in (lambda: worker.check(write_check_sets(task)), lambda: worker.start(0.2), lambda: worker.turn(0.1)):
            answers.append(ask())
            counts.append(worker.batches)
    assert counts == sorted(set(counts))
    _, start, turn = answers
    assert start["first_epoch"]["images"] > 0
    assert start["set_up_seconds"] > 0
    assert start["memory"] > 50e6
    assert start["cpu"] > 0
    assert turn["rate"] > 0
    assert turn["taken"] > turn["images"]


def wait_for_end(pid):
    """Until a killed process is gone, or nobody has waited for it yet."""
    deadline = time.monotonic() + 300
    with suppress(OSError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.01)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["model", "both"])
def test_a_model_is_trained_alone_and_on_a_loader(task, kind):
    with closing(WorkerHandle(Spec(f"{MODULE}:mixed", task, kind, "small"))) as worker:
        worker.start(0.1)
        turn = worker.turn(0.1)
    assert 0 < turn["waited"] < turn["seconds"]


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "unknown contender 'nobody'"),
        ("no_such_module:loader", "no_such_module"),
        (f"{MODULE}:nothing", "no attribute 'nothing'"),
        ("tests.numbered:NUM_SAMPLES", "expected an Entry, or a function"),
    ],
)
def test_names_are_known_or_said_to_be_unknown(name, message):
    with pytest.raises(ValueError, match=message):
        find_entry(name)


def test_an_own_contender_says_how_it_mixes_and_what_it_reads():
    entry = find_entry(f"{MODULE}:mixed")
    assert (entry.mixing, entry.images_per_output(10)) == ("fdt", 3.5)
    assert choose([], [f"{MODULE}:mixed", f"{MODULE}:whole"], ["fdt"]) == [f"{MODULE}:mixed"]
    with pytest.raises(ValueError, match="no contender is left with mixing mixup"):
        choose([], [f"{MODULE}:whole"], ["mixup"])


@pytest.mark.parametrize("name", ["whole", "generated"])
def test_loaders_and_generator_functions_give_epoch_after_epoch(task, name):
    contender = find_entry(f"{MODULE}:{name}").make(task)
    for number in range(3):
        assert sum(len(images) for images, _ in contender.epoch(number)) == task.manifest.num_samples
    contender.close()


def test_a_process_that_works_is_not_idle(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("tools.bench.resources._cpu_seconds", lambda: next(seconds))
    assert not wait_until_idle(0.3)
    monkeypatch.setattr("tools.bench.resources._cpu_seconds", lambda: 7.0)
    assert wait_until_idle(0.3)
