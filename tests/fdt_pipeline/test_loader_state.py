"""Resume: what follows a loaded state is, bit for bit, what would have followed without a break."""

import json
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fdt_pipeline import FDT, Augment, FDTLoader, Geometric, Power
from fdt_pipeline.loader import epoch
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, assert_same, global_batches, joined, numbers_of, ranks
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

MODES = ("resident", "streaming")
LEADER_FIRST = FDT(min_images=2, series=Geometric(1e-4), anchor="epoch")  # as good as whole, so it can be told

# Each example is a run of its own: a smaller one than the one that failed is not looked for.
FEW = settings(deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])

# A rank's part of 230 samples in 7 classes is a small window.
pytestmark = [pytest.mark.filterwarnings("ignore:.*classes:UserWarning"), pytest.mark.dali]


@pytest.fixture(scope="module")
def png_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("png") / "shards"
    write_shards(ArraySource(numbered_images(), LABELS), folder, "png", samples_per_shard=60, seed=3)
    return folder


def stored(state):
    """A state as a checkpoint would give it back."""
    assert len(json.dumps(state)) < 4096
    assert len(pickle.dumps(state)) < 4096
    assert pickle.loads(pickle.dumps(state)) == state
    assert json.loads(json.dumps(state)) == state
    return json.loads(json.dumps(state))


def run_with_states(loader):
    """(the batches of an epoch, the state when so many of them have been yielded: before the first, between them,
    with the last in the consumer's hands, and after the end)."""
    batches, states = [], [stored(loader.state_dict())]
    for batch in loader:
        batches.append(batch)
        states.append(stored(loader.state_dict()))
    return batches, [*states, stored(loader.state_dict())]


RUNS = [
    ("native", 0, "raw"),
    ("native", 1, "raw"),
    ("native", 3, "raw"),
    ("native", 2, "png"),
    ("torch", 3, "raw"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("engine", "prefetch", "encoding"), RUNS)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    numbered_shards, png_shards, mode, engine, prefetch, encoding
):
    """At every batch of an epoch and across its end, with batches made ahead; compared over two more epochs."""
    options = {"mode": mode, "engine": engine, "prefetch": prefetch, "seed": 4}
    options |= {"mix_window": 70} if mode == "streaming" else {}  # batches span windows
    shards = numbered_shards if encoding == "raw" else png_shards
    loader = FDTLoader(shards, 32, **options)
    first = list(loader)
    batches, states = run_with_states(loader)
    third, fourth = list(loader), list(loader)
    assert not torch.equal(first[0][0], batches[0][0])
    for done, state in enumerate(states):
        resumed = FDTLoader(shards, 32, **{**options, "num_threads": 1 + done % 3})
        resumed.load_state_dict(state)
        assert resumed.epoch == (1 if done <= len(batches) else 2)
        if done <= len(batches):
            assert_same(list(resumed), batches[done:])
        assert_same(list(resumed), third)
        if done in (0, 3, len(batches)):
            assert_same(list(resumed), fourth)


@pytest.mark.parametrize("mode", MODES)
@settings(FEW, max_examples=15)
@given(data=st.data())
def test_a_resumed_run_goes_on_for_any_batch_size_and_window(numbered_shards, mode, data):
    batch_size = data.draw(st.integers(8, 80), "batch_size")
    options = {"mode": mode, "seed": 4, "last_batch": data.draw(st.sampled_from(["drop", "partial", "fill"]))}
    if mode == "streaming":
        options |= {"mix_window": data.draw(st.one_of(st.none(), st.integers(36, 240)), "mix_window")}
    loader = FDTLoader(numbered_shards, batch_size, prefetch=data.draw(st.integers(0, 3), "prefetch"), **options)
    done = data.draw(st.integers(0, len(loader)), "done")
    batches = iter(loader)
    head = list(islice(batches, done))
    resumed = FDTLoader(numbered_shards, batch_size, **options)
    resumed.load_state_dict(stored(loader.state_dict()))
    rest = list(batches)
    assert len(head) == done
    assert len(rest) == len(loader) - done
    assert_same(list(resumed), rest)
    assert_same(list(islice(resumed, 2)), list(islice(loader, 2)))


@pytest.mark.parametrize("mode", MODES)
def test_a_run_can_be_resumed_again_and_again(numbered_shards, mode):
    """A new loader for every batch of two epochs."""
    whole = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    expected = [*whole, *whole]
    state, found = FDTLoader(numbered_shards, 40, mode=mode, seed=8).state_dict(), []
    while len(found) < len(expected):
        loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
        loader.load_state_dict(stored(state))
        found += list(islice(loader, 1))
        state = loader.state_dict()
    assert_same(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_loader_can_go_back_to_a_state_of_its_own(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = list(batches)
    list(loader)
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert_same(list(loader), rest)
    assert loader.epoch == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_state_is_of_the_iteration_that_moved_last(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    next(second)
    of_second = loader.state_dict()
    next(first)
    of_first = loader.state_dict()
    for state, batches in ((of_first, first), (of_second, second)):
        resumed = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
        resumed.load_state_dict(state)
        assert_same(list(resumed), list(batches))


@pytest.mark.parametrize("mode", MODES)
def test_an_iteration_that_has_not_moved_yet_is_at_its_beginning(numbered_shards, mode):
    """A run that ends between `iter` and the first batch has not had that epoch."""
    loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    batches = iter(loader)
    resumed = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    resumed.load_state_dict(stored(loader.state_dict()))
    assert_same(list(resumed), list(batches))


@pytest.mark.parametrize("mode", MODES)
def test_a_state_outlasts_an_early_break(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    expected = list(loader)
    loader.set_epoch(0)
    for number, _ in enumerate(loader):
        if number == 1:
            break
    resumed = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    resumed.load_state_dict(loader.state_dict())
    assert_same(list(resumed), expected[2:])


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_set_again_keeps_the_place_and_another_drops_it(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    loader.set_epoch(3)
    expected, after = list(loader), list(loader)
    loader.set_epoch(3)
    next(iter(loader))
    state = loader.state_dict()
    kept, dropped, back = (FDTLoader(numbered_shards, 40, mode=mode, seed=8) for _ in range(3))
    for resumed in (kept, dropped, back):
        resumed.load_state_dict(state)
    kept.set_epoch(3)
    assert_same(list(kept), expected[1:])
    dropped.set_epoch(4)
    assert_same(list(dropped), after)
    back.set_epoch(4)
    back.set_epoch(3)
    assert_same(list(back), expected)


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_set_before_it_is_run_is_in_the_state(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode)
    loader.set_epoch(6)
    resumed = FDTLoader(numbered_shards, 40, mode=mode)
    resumed.load_state_dict(stored(loader.state_dict()))
    assert resumed.epoch == 6
    assert_same(list(resumed), list(loader))


@pytest.mark.parametrize("mode", MODES)
def test_a_state_remembers_that_mixing_was_switched_off(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode, augment=None, **PIXELS)
    loader.mixing = False
    batches = iter(loader)
    head = list(islice(batches, 2))
    resumed = FDTLoader(numbered_shards, 40, mode=mode, augment=None, **PIXELS)
    resumed.load_state_dict(stored(loader.state_dict()))
    assert resumed.mixing is False
    rest = list(batches)
    assert_same(list(resumed), rest)
    assert sorted(numbers_of(head + rest)) == list(range(NUM_SAMPLES))
    assert_same(list(resumed), list(loader))


@pytest.mark.parametrize("mode", MODES)
def test_a_state_taken_while_mixing_is_of_mixing_though_it_is_switched_off_for_the_next(numbered_shards, mode):
    """The switch is for the next iteration; a run broken in this one goes on with it, and then without mixing."""
    loader = FDTLoader(numbered_shards, 40, mode=mode)
    batches = iter(loader)
    next(batches)
    loader.mixing = False
    resumed = FDTLoader(numbered_shards, 40, mode=mode)
    resumed.load_state_dict(stored(loader.state_dict()))
    assert_same(list(resumed), list(batches))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{"weights": True}, {"dtype": torch.bfloat16}])
def test_every_form_of_a_batch_resumes(numbered_shards, mode, options):
    loader = FDTLoader(numbered_shards, 40, mode=mode, **options)
    batches = iter(loader)
    next(batches)
    resumed = FDTLoader(numbered_shards, 40, mode=mode, **options)
    resumed.load_state_dict(stored(loader.state_dict()))
    for found, expected in zip(resumed, batches, strict=True):
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_resumes(numbered_shards, mode):
    options = {"train": False, "mode": mode, "last_batch": "fill", "weights": True}
    loader = FDTLoader(numbered_shards, 50, **options)
    batches = iter(loader)
    list(islice(batches, 4))
    resumed = FDTLoader(numbered_shards, 50, **options)
    resumed.load_state_dict(stored(loader.state_dict()))
    assert_same(list(resumed), list(batches))


def test_what_differs_only_in_how_it_runs_is_taken(numbered_shards):
    for mode in MODES:
        loader = FDTLoader(numbered_shards, 40, mode=mode, num_threads=1, prefetch=0, engine="native")
        batches = iter(loader)
        next(batches)
        resumed = FDTLoader(
            numbered_shards, 40, mode=mode, num_threads=3, prefetch=3, engine="torch", channels_last=True, verify=False
        )
        resumed.load_state_dict(stored(loader.state_dict()))
        for (images, targets), (expected, expected_targets) in zip(resumed, batches, strict=True):
            assert (images - expected).abs().max() < 2e-6
            assert torch.equal(targets, expected_targets)


SAME = {"mode": "streaming", "mix_window": 70, "seed": 1}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 2}, "seed"),
        ({"train": False, "mix_window": None}, "train"),
        ({"mode": "resident", "mix_window": None}, "mode"),
        ({"mix": None}, "mix"),
        ({"mix": FDT(series=Power(2))}, "mix"),
        ({"augment": Augment(pad=2)}, "augment"),
        ({"mix": FDT(targets="dominant")}, "mix"),
        ({"batch_size": 20}, "global.?batch.?size"),
        ({"rank": 0, "world_size": 2}, "global.?batch.?size"),
        ({"last_batch": "drop"}, "last_batch"),
        ({"mean": 100}, "mean"),
        ({"std": 255}, "std"),
        ({"dtype": torch.float16}, "dtype"),
        ({"size": (8, 8)}, "size"),
        ({"mix_window": 80}, "mix_window"),
    ],
)
def test_a_state_of_another_configuration_is_refused_and_the_field_named(numbered_shards, change, field):
    state = stored(FDTLoader(numbered_shards, 40, **SAME).state_dict())
    other = FDTLoader(numbered_shards, **{"batch_size": 40, **SAME, **change})
    with pytest.raises(ValueError, match=field) as caught:
        other.load_state_dict(state)
    named = {"seed", "train", "mode", "augment", "last_batch", "mean", "std", "dtype"} - {field, *change}
    if change.keys() <= {"seed", "mean", "std", "dtype", "last_batch"}:
        assert not any(f"{name}:" in str(caught.value) for name in named)
    assert other.epoch == 0


def test_every_field_that_differs_is_named_at_once(numbered_shards):
    state = FDTLoader(numbered_shards, 40, **SAME).state_dict()
    other = FDTLoader(numbered_shards, 30, mode="streaming", seed=5, mean=1, last_batch="fill")
    with pytest.raises(ValueError, match="seed") as caught:
        other.load_state_dict(state)
    for field in ("seed", "mean", "last_batch", "batch"):
        assert field in str(caught.value)


@pytest.fixture
def made_where(monkeypatch, numbered_shards):
    """A loader of mode="auto", made where there is room for the set in memory, or none."""

    def make(*, is_free, **options):
        room = 10**9 if is_free else 0
        monkeypatch.setattr("fdt_pipeline.loader.memory.available_memory", lambda: room)
        return FDTLoader(numbered_shards, 40, **{"seed": 3, **options})

    return make


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("was_free", [True, False])
def test_an_auto_loader_goes_on_in_the_mode_of_its_state_whatever_memory_is_free(made_where, was_free, engine):
    first = made_where(is_free=was_free, engine=engine)
    batches = iter(first)
    next(batches)
    state = stored(first.state_dict())
    other = made_where(is_free=not was_free, engine=engine)
    assert other.mode != first.mode
    other.load_state_dict(state)
    assert other.mode == first.mode
    assert stored(other.state_dict()) == state
    assert_same([*other, *other], [*batches, *first])


@pytest.mark.parametrize("was_free", [True, False])
def test_an_explicit_mode_is_kept_and_a_state_of_the_other_one_refused(made_where, was_free):
    state = made_where(is_free=was_free).state_dict()
    mode, other = MODES if was_free else reversed(MODES)
    with pytest.raises(ValueError, match=f"another loader: mode is '{mode}' there and '{other}' here"):
        made_where(is_free=was_free, mode=other, mix_window=None).load_state_dict(state)


@pytest.mark.parametrize("change", [{"seed": 4}, {"mix_window": 80}])
def test_a_refused_state_leaves_an_auto_loader_as_it_was(made_where, change):
    loader = made_where(is_free=True)
    state = made_where(is_free=False, **change).state_dict()
    with pytest.raises(ValueError, match=next(iter(change))):
        loader.load_state_dict(state)
    with pytest.raises(ValueError, match="mode is 'fast' there"):
        loader.load_state_dict({**state, "config": {**loader.state_dict()["config"], "mode": "fast"}})
    assert loader.mode == "resident"
    assert_same(list(loader), list(made_where(is_free=True)))


def test_options_of_streaming_are_refused_for_the_state_of_a_resident_loader(made_where):
    state = made_where(is_free=True).state_dict()
    with pytest.raises(ValueError, match="mix_window is for streaming"):
        made_where(is_free=False, mix_window=80).load_state_dict(state)


def test_channels_are_compared(tmp_path):
    gray = numbered_images(60, (6, 5, 1))
    write_shards(ArraySource(gray, LABELS[:60]), tmp_path / "gray")
    state = FDTLoader(tmp_path / "gray", 20, mean=117.0).state_dict()
    with pytest.raises(ValueError, match="channels"):
        FDTLoader(tmp_path / "gray", 20, channels=3, mean=117.0).load_state_dict(state)


def test_a_state_of_other_shards_is_refused(numbered_shards, tmp_path):
    state = FDTLoader(numbered_shards, 40).state_dict()
    write_shards(ArraySource(numbered_images(), LABELS), tmp_path / "other", samples_per_shard=60, seed=4)
    with pytest.raises(ValueError, match="shards"):
        FDTLoader(tmp_path / "other", 40).load_state_dict(state)


def test_the_same_shards_elsewhere_are_the_same(numbered_shards, tmp_path):
    (tmp_path / "moved").symlink_to(numbered_shards)
    state, moved = FDTLoader(numbered_shards, 40).state_dict(), FDTLoader(tmp_path / "moved", 40)
    moved.load_state_dict(state)
    assert moved.state_dict() == state


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: {},
        lambda state: {**state, "epoch": -1},
        lambda state: {**state, "epoch": 2**32},
        lambda state: {**state, "epoch": "1"},
        lambda state: {**state, "epoch": None},
        lambda state: None,
        lambda state: [],
    ],
)
def test_what_is_no_state_is_refused(numbered_shards, damage):
    loader = FDTLoader(numbered_shards, 40)
    with pytest.raises((ValueError, TypeError)):
        loader.load_state_dict(damage(stored(loader.state_dict())))
    assert loader.epoch == 0


def test_a_refused_state_leaves_the_loader_as_it_was(numbered_shards):
    loader = FDTLoader(numbered_shards, 40, seed=1)
    batches = iter(loader)
    next(batches)
    before = loader.state_dict()
    with pytest.raises(ValueError, match="seed"):
        loader.load_state_dict(FDTLoader(numbered_shards, 40, seed=2).state_dict())
    assert loader.state_dict() == before


def test_a_state_is_a_copy(numbered_shards):
    loader = FDTLoader(numbered_shards, 40, seed=1)
    state = loader.state_dict()
    before = json.dumps(state)
    list(loader)
    assert json.dumps(state) == before
    state.clear()
    assert loader.state_dict()


# Another number of ranks


@pytest.mark.parametrize("fdt", [FDT(), None, LEADER_FIRST])
def test_resident_runs_go_on_with_the_same_global_batches_on_other_ranks(numbered_shards, fdt):
    options = {"mode": "resident", "mix": fdt, "seed": 6}
    [alone] = ranks(numbered_shards, 24, 1, **options)
    expected = [*alone, *alone]
    found, state = [], None
    for world_size, steps in ((2, 3), (4, 4), (1, 2), (3, 11)):
        loaders = ranks(numbered_shards, 24, world_size, **options)
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        while steps:
            parts = [list(islice(loader, steps)) for loader in loaders]
            found += [joined(batches) for batches in zip(*parts, strict=True)]
            steps -= len(parts[0])
        states = [stored(loader.state_dict()) for loader in loaders]
        state = states[-1]
        assert states == [state] * world_size
    assert_same(found, expected[: len(found)])
    assert len(found) == len(expected)


@pytest.mark.parametrize("last_batch", ["partial", "fill", "drop"])
@pytest.mark.parametrize("fdt", [None, LEADER_FIRST])
def test_streaming_runs_show_what_is_left_exactly_once_on_other_ranks(numbered_shards, fdt, last_batch):
    """3 -> 2 -> 5 ranks within one epoch; the epochs after it are those of 5 ranks that have always been so many."""
    options = {"mode": "streaming", "mix": fdt, "augment": None, "mix_window": 46, "weights": True, **PIXELS}
    options |= {"last_batch": last_batch, "seed": 6}
    found, state = [], None
    for world_size, steps in ((3, 2), (2, 3), (5, 99)):
        loaders = ranks(numbered_shards, 30, world_size, **options)
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        iterations = [iter(loader) for loader in loaders]
        parts = [list(islice(iteration, steps)) for iteration in iterations]
        found += [joined(batches) for batches in zip(*parts, strict=True)]
        states = [stored(loader.state_dict()) for loader in loaders]
        state = states[0]
        assert states == [state] * world_size
    real = [images[weights == 1] for images, _, weights in found]
    assert [len(weights) for _, _, weights in found][:7] == [30] * 7
    assert len(found) == (7 if last_batch == "drop" else 8)
    numbers = numbers_of([(images,) for images in real])
    if last_batch == "drop":
        assert len(set(numbers)) == 210 == len(numbers)
    else:
        assert sorted(numbers) == list(range(NUM_SAMPLES))
    fresh = ranks(numbered_shards, 30, 5, **options)
    for loader in fresh:
        loader.set_epoch(1)
    assert_same(global_batches(loaders), global_batches(fresh))


WORLD_SIZES = st.sampled_from([1, 2, 3, 4, 6, 12])


@pytest.mark.soak
@pytest.mark.parametrize("train", [True, False])
@settings(FEW, max_examples=12)
@given(
    legs=st.lists(st.tuples(WORLD_SIZES, st.integers(0, 9)), max_size=4), last=WORLD_SIZES, window=st.integers(1, 60)
)
def test_streaming_shows_every_sample_once_however_often_the_ranks_change(numbered_shards, train, legs, last, window):
    """legs: (ranks, batches that they have)."""
    options = {"mode": "streaming", "train": train, "last_batch": "fill", "weights": True, **PIXELS}
    options |= {"mix": None, "augment": None, "mix_window": window} if train else {}
    found, state = [], None
    for world_size, steps in [*legs, (last, 99)]:
        loaders = ranks(numbered_shards, 12, world_size, **options)
        for loader in loaders if state is not None else ():
            loader.load_state_dict(state)
        parts = [list(islice(iteration, steps)) for iteration in map(iter, loaders)]
        found += [joined(batches) for batches in zip(*parts, strict=True)]
        state = stored(loaders[-1].state_dict())
    images, _, weights = joined(found)
    assert sorted(numbers_of([(images[weights == 1],)])) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("done", [0, 3, 10])
def test_a_state_is_taken_on_other_ranks_when_nobody_chose_a_window(numbered_shards, train, done):
    """What mix_window is then depends on the batch of a rank."""
    options = {"mode": "streaming", "train": train, **PIXELS}
    options |= {"mix": None, "augment": None} if train else {}
    [alone] = ranks(numbered_shards, 24, 1, **options)
    found = list(islice(iter(alone), done))
    loaders = ranks(numbered_shards, 24, 3, **options)
    for loader in loaders:
        loader.load_state_dict(stored(alone.state_dict()))
    found += global_batches(loaders)
    assert sorted(numbers_of(found)) == list(range(NUM_SAMPLES))


def test_a_state_that_only_passed_through_other_ranks_goes_on_as_if_it_had_not(numbered_shards):
    options = {"mode": "streaming", "mix_window": 46, "seed": 2}
    [alone] = ranks(numbered_shards, 24, 1, **options)
    batches = iter(alone)
    list(islice(batches, 3))
    state = alone.state_dict()
    for world_size in (2, 4):
        loader = ranks(numbered_shards, 24, world_size, **options)[0]
        loader.load_state_dict(state)
        state = stored(loader.state_dict())
    [resumed] = ranks(numbered_shards, 24, 1, **options)
    resumed.load_state_dict(state)
    assert_same(list(resumed), list(batches))


@pytest.mark.soak
def test_a_state_stays_small_however_often_the_ranks_change(numbered_shards):
    state = None
    for turn in range(40):
        loader = FDTLoader(numbered_shards, 1 + turn % 2, mode="streaming", mix=None, rank=0, world_size=2 - turn % 2)
        if state is not None:
            loader.load_state_dict(state)
        iteration = iter(loader)
        next(iteration)
        state = stored(loader.state_dict())


def test_resuming_makes_no_batch_of_those_before_it(numbered_shards):
    """So it takes as long at the end of an epoch as at its beginning: what is made is counted."""
    for mode, options in (("resident", {}), ("streaming", {"mix_window": 46})):
        loader = FDTLoader(numbered_shards, 23, mode=mode, **options)
        batches = iter(loader)
        list(islice(batches, 8))
        resumed = FDTLoader(numbered_shards, 23, mode=mode, **options)
        resumed.load_state_dict(loader.state_dict())
        list(resumed)
        assert (resumed.stats.batches, resumed.stats.images) == (2, 46)
        if mode == "streaming":
            assert resumed.stats.windows == 1


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_resident_resume_asks_for_the_outputs_from_there_on_alone(numbered_shards, engine, monkeypatch):
    asked = []
    real = epoch.ids_of
    monkeypatch.setattr(epoch, "ids_of", lambda number, index: asked.extend(index.tolist()) or real(number, index))
    loader = FDTLoader(numbered_shards, 23, mode="resident", engine=engine)
    next(batches := iter(loader))
    list(islice(batches, 7))
    state = loader.state_dict()
    batches.close()  # and with it what works ahead
    asked.clear()
    resumed = FDTLoader(numbered_shards, 23, mode="resident", engine=engine)
    resumed.load_state_dict(state)
    list(resumed)
    assert sorted(asked) == list(range(8 * 23, NUM_SAMPLES))


def test_streaming_resume_reads_no_shard_that_is_done_with(numbered_shards, monkeypatch):
    """With windows of 46 and shards of 60, the last window is in the last shards alone."""
    from fdt_pipeline.shards.files import LocalShardFiles

    opened = []
    real = LocalShardFiles.in_order

    def noted(self, shards):
        opened.append([shard.name for shard in shards])
        return real(self, shards)

    loader = FDTLoader(numbered_shards, 23, mode="streaming", mix_window=46)
    list(islice(batches := iter(loader), 8))
    state = loader.state_dict()
    batches.close()
    monkeypatch.setattr(LocalShardFiles, "in_order", noted)
    resumed = FDTLoader(numbered_shards, 23, mode="streaming", mix_window=46)
    resumed.load_state_dict(state)
    assert len(list(resumed)) == 2
    assert [len(names) for names in opened] == [2]


@pytest.mark.parametrize("mode", MODES)
def test_switching_mixing_off_is_refused_nowhere_and_on_where_there_is_none(numbered_shards, mode):
    for options in ({"mix": None}, {"train": False}):
        loader = FDTLoader(numbered_shards, 40, mode=mode, **options)
        assert loader.mixing is False
        loader.mixing = False
        with pytest.raises(ValueError, match="has no mix to switch on"):
            loader.mixing = True
    loader = FDTLoader(numbered_shards, 40, mode=mode)
    assert loader.mixing is True
    mixed = list(loader)
    loader.mixing = False
    list(loader)
    loader.mixing = True
    loader.set_epoch(0)
    assert_same(list(loader), mixed)


def test_numpy_numbers_may_be_stored(numbered_shards):
    """What a consumer passes in, such as an epoch counted in NumPy, is JSON all the same."""
    fdt = FDT(min_images=np.int64(2), max_images=np.int64(3), probability=np.float32(0.5))
    loader = FDTLoader(
        numbered_shards, np.int64(40), seed=np.int64(3), mix=fdt, mean=np.float32(100), std=np.array([1, 2, 3])
    )
    loader.set_epoch(np.int64(2))
    assert stored(loader.state_dict())["epoch"] == 2
