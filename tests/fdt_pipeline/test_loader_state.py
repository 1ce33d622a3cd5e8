"""Resume: what follows a loaded state is, bit for bit, what would have followed without a break."""

import json
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, MixUp, OneOf, Power
from fdt_pipeline.loader import epoch
from fdt_pipeline.loader.engines import SpanBatch
from fdt_pipeline.shards import write_shards
from fdt_pipeline.shards.files import LocalShardFiles
from fdt_pipeline.sources import ArraySource
from tests.loading import LEADER_FIRST, MODES, PIXELS, assert_same, global_batches, joined, numbers_of, ranks
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

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
    assert pickle.loads(pickle.dumps(state)) == state
    assert json.loads(json.dumps(state)) == state
    return json.loads(json.dumps(state))


def after(state, shards, batch_size, **options):
    """A new loader that goes on from this state."""
    loader = FDTLoader(shards, batch_size, **options)
    loader.load_state_dict(stored(state))
    return loader


def run_with_states(loader):
    """(the batches of an epoch, the state when so many of them have been yielded: before the first, between them,
    with the last in the consumer's hands, and after the end)."""
    batches, states = [], [loader.state_dict()]
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
    return batches, [*states, loader.state_dict()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("engine", "prefetch", "encoding"),
    [("native", 0, "raw"), ("native", 1, "raw"), ("native", 3, "raw"), ("native", 2, "png"), ("torch", 3, "raw")],
)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    numbered_shards, png_shards, mode, engine, prefetch, encoding
):
    """At every batch of an epoch and across its end, with batches made ahead; compared over two more epochs."""
    options = {"mode": mode, "engine": engine, "prefetch": prefetch, "seed": 4}
    options |= {"ring": 70} if mode == "streaming" else {}  # batches span windows
    shards = numbered_shards if encoding == "raw" else png_shards
    loader = FDTLoader(shards, 32, **options)
    first = list(loader)
    batches, states = run_with_states(loader)
    third, fourth = list(loader), list(loader)
    assert not torch.equal(first[0][0], batches[0][0])
    for done, state in enumerate(states):
        resumed = after(state, shards, 32, **options, num_threads=1 + done % 3)
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
        options |= {"ring": data.draw(st.one_of(st.none(), st.integers(36, 240)), "ring")}
    loader = FDTLoader(numbered_shards, batch_size, prefetch=data.draw(st.integers(0, 3), "prefetch"), **options)
    batches = iter(loader)
    list(islice(batches, data.draw(st.integers(0, len(loader)), "done")))
    resumed = after(loader.state_dict(), numbered_shards, batch_size, **options)
    assert_same(list(resumed), list(batches))
    assert_same(list(islice(resumed, 2)), list(islice(loader, 2)))


def of_an_epoch_that_was_set(loader):
    loader.set_epoch(6)
    return loader


def in_mid_epoch(loader):
    batches = iter(loader)
    list(islice(batches, 2))
    return batches


def after_an_early_break(loader):
    expected = list(loader)
    loader.set_epoch(0)
    list(islice(loader, 2))
    return expected[2:]


def of_the_iteration_that_moved_last(loader):
    first, second = iter(loader), iter(loader)
    next(first)
    list(islice(second, 2))
    next(first)
    return first


def of_an_epoch_without_mixing(loader):
    loader.mixing = False
    return in_mid_epoch(loader)


def of_mixing_that_is_off_for_the_next_epoch(loader):
    batches = in_mid_epoch(loader)
    loader.mixing = False
    return batches


def of_a_loader_that_went_back_to_a_state_of_its_own(loader):
    """Whatever the older iteration does after that."""
    older = in_mid_epoch(loader)
    loader.load_state_dict(loader.state_dict())
    assert loader.epoch == 0
    next(older)
    return in_mid_epoch(loader)


FORMS = {"weights": True, "dtype": torch.bfloat16, "last_batch": "fill"}
SITUATIONS = [
    *((situation, {}) for situation in (
        of_an_epoch_that_was_set, after_an_early_break, of_the_iteration_that_moved_last,
        of_an_epoch_without_mixing, of_mixing_that_is_off_for_the_next_epoch,
        of_a_loader_that_went_back_to_a_state_of_its_own,
    )),
    (in_mid_epoch, FORMS),
    (in_mid_epoch, {**FORMS, "train": False}),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("situation", "options"), SITUATIONS)
def test_what_follows_a_state_is_what_would_have_followed(numbered_shards, mode, situation, options):
    """The rest of its epoch, and the epoch after it."""
    options = {"mode": mode, "seed": 8, **options}
    loader = FDTLoader(numbered_shards, 40, **options)
    rest = situation(loader)
    resumed = after(loader.state_dict(), numbered_shards, 40, **options)
    assert_same(list(resumed), list(rest))
    assert resumed.mixing == loader.mixing
    loader.set_epoch(resumed.epoch)
    assert_same(list(resumed), list(loader))


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_set_again_keeps_the_place_and_another_drops_it(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 40, mode=mode, seed=8)
    loader.set_epoch(3)
    next(iter(loader))
    state = loader.state_dict()
    loader.set_epoch(3)
    expected, following = list(loader), list(loader)
    for epochs, batches in (([3], expected[1:]), ([4], following), ([4, 3], expected)):
        resumed = after(state, numbered_shards, 40, mode=mode, seed=8)
        for number in epochs:
            resumed.set_epoch(number)
        assert_same(list(resumed), batches)


@pytest.mark.parametrize("mode", MODES)
def test_what_differs_only_in_how_it_runs_or_where_the_shards_are_is_taken(numbered_shards, tmp_path, mode):
    (tmp_path / "moved").symlink_to(numbered_shards)
    loader = FDTLoader(numbered_shards, 40, mode=mode, num_threads=1, prefetch=0, engine="native")
    batches = in_mid_epoch(loader)
    others = {"num_threads": 3, "prefetch": 3, "engine": "torch", "channels_last": True, "verify": False}
    resumed = after(loader.state_dict(), tmp_path / "moved", 40, mode=mode, **others)
    for (images, targets), (expected, expected_targets) in zip(resumed, batches, strict=True):
        assert (images - expected).abs().max() < 2e-6
        assert torch.equal(targets, expected_targets)


SAME = {"mode": "streaming", "ring": 70, "seed": 1}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"seed": 2}, ["seed"]),
        ({"train": False, "ring": None}, ["train", "mix", "augment"]),
        ({"mode": "resident", "ring": None}, ["mode", "ring"]),
        ({"mix": None}, ["mix"]),
        ({"mix": FDT(series=Power(2))}, ["mix"]),
        ({"mix": MixUp(0.2)}, ["mix"]),
        ({"augment": Augment(pad=2)}, ["augment"]),
        ({"batch_size": 20}, ["global_batch_size"]),
        ({"rank": 0, "world_size": 2}, ["global_batch_size"]),
        ({"last_batch": "drop"}, ["last_batch"]),
        ({"mean": 100}, ["mean"]),
        ({"dtype": torch.float16}, ["dtype"]),
        ({"size": (8, 8)}, ["size"]),
        ({"ring": 80}, ["ring"]),
        ({"seed": 5, "mean": 1, "last_batch": "fill", "batch_size": 30}, ["seed", "mean", "last_batch", "batch_size"]),
        ({"shards": "other"}, ["shards"]),
        ({"shards": "gray", "channels": 3, "mean": 117.0}, ["shards"]),
        ({"shards": "gray"}, ["shards", "channels", "mean", "std"]),
    ],
)
def test_a_state_of_another_configuration_is_refused_and_the_field_named(numbered_shards, tmp_path, change, fields):
    """Every one that differs, at once; and the loader stays as it was."""
    images = {"other": numbered_images()[::-1], "gray": numbered_images(NUM_SAMPLES, (6, 5, 1))}
    shards = change.get("shards", numbered_shards)
    if shards in images:
        write_shards(ArraySource(images[shards], LABELS), tmp_path / shards)
        shards = tmp_path / shards
    state = FDTLoader(numbered_shards, 40, **SAME).state_dict()
    other = FDTLoader(**{"batch_size": 40, **SAME, **change, "shards": shards})
    batches = iter(other)
    next(batches)
    before = other.state_dict()
    with pytest.raises(ValueError, match="the state is of another loader") as caught:
        other.load_state_dict(state)
    for field in fields:
        assert f"{field} is " in str(caught.value)
    if change.keys() <= {"seed", "mean", "std", "dtype", "last_batch"}:
        assert str(caught.value).count(" here") == len(fields)
    assert other.state_dict() == before


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
    batches = in_mid_epoch(first)
    state = stored(first.state_dict())
    other = made_where(is_free=not was_free, engine=engine)
    assert other.mode != first.mode
    other.load_state_dict(state)
    assert other.mode == first.mode
    assert stored(other.state_dict()) == state
    assert_same([*other, *other], [*batches, *first])


@pytest.mark.parametrize("change", [{"seed": 4}, {"ring": 80}])
def test_a_refused_state_leaves_an_auto_loader_as_it_was(made_where, change):
    loader = made_where(is_free=True)
    state = made_where(is_free=False, **change).state_dict()
    with pytest.raises(ValueError, match=next(iter(change))):
        loader.load_state_dict(state)
    with pytest.raises(ValueError, match="mode is 'fast' there"):
        loader.load_state_dict({**state, "config": {**loader.state_dict()["config"], "mode": "fast"}})
    assert loader.mode == "resident"
    assert_same(list(loader), list(made_where(is_free=True)))
    with pytest.raises(ValueError, match="ring is for streaming"):
        made_where(is_free=False, ring=80).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    "damage", [{"version": 1}, *({"epoch": value} for value in (-1, 2**32, "1", None)), {"legs": [{}]}, None, [], "{}"]
)
def test_what_is_no_state_is_refused(numbered_shards, damage):
    loader = FDTLoader(numbered_shards, 40)
    state = loader.state_dict()
    with pytest.raises(
        ValueError, match=r"state is of version 1|epoch of the state|legs of the state|expected what state_dict\(\)"
    ):
        loader.load_state_dict({**state, **damage} if isinstance(damage, dict) else damage)
    assert loader.state_dict() == state


def test_a_state_is_a_copy_and_holds_json_though_its_options_were_numpys(numbered_shards):
    fdt = FDT(min_images=np.int64(2), max_images=np.int64(3), probability=np.float32(0.5))
    numbers = {"seed": np.int64(3), "mean": np.float32(100), "std": np.array([1, 2, 3])}
    loader = FDTLoader(numbered_shards, np.int64(40), mix=fdt, **numbers)
    loader.set_epoch(np.int64(2))
    state = loader.state_dict()
    before = stored(state)
    list(loader)
    assert state == before
    assert before["epoch"] == 2
    state.clear()
    assert loader.state_dict()


def changing_ranks(shards, global_batch, turns, **options):
    """(global batches, the loaders of the last ranks) of a run that goes on from one number of ranks to the next.
    turns: (ranks, batches that they have of the epoch that they are in)."""
    found, state = [], None
    for world_size, steps in turns:
        loaders = ranks(shards, global_batch, world_size, **options)
        for loader in loaders if state is not None else ():
            loader.load_state_dict(state)
        found += [joined(batches) for batches in zip(*(list(islice(each, steps)) for each in loaders), strict=True)]
        states = [stored(loader.state_dict()) for loader in loaders]
        assert states == states[:1] * world_size
        state = states[-1]
    return found, loaders


@pytest.mark.parametrize("fdt", [FDT(), None, LEADER_FIRST])
def test_resident_runs_go_on_with_the_same_global_batches_on_other_ranks(numbered_shards, fdt):
    options = {"mode": "resident", "mix": fdt, "seed": 6}
    [alone] = ranks(numbered_shards, 24, 1, **options)
    found, loaders = changing_ranks(numbered_shards, 24, [(2, 3), (4, 4), (1, 2), (3, 99)], **options)
    assert_same([*found, *global_batches(loaders)], [*alone, *alone])


@pytest.mark.parametrize("window", [46, None])  # what None means depends on the batch of a rank
@pytest.mark.parametrize("last_batch", ["partial", "fill", "drop"])
@pytest.mark.parametrize("fdt", [None, LEADER_FIRST])
def test_streaming_runs_show_what_is_left_exactly_once_on_other_ranks(numbered_shards, fdt, last_batch, window):
    """3 -> 2 -> 5 ranks within one epoch; the epochs after it are those of 5 ranks that have always been so many."""
    options = {"mode": "streaming", "mix": fdt, "augment": None, "ring": window, "weights": True, **PIXELS}
    options |= {"last_batch": last_batch, "seed": 6}
    found, loaders = changing_ranks(numbered_shards, 30, [(3, 2), (2, 3), (5, 99)], **options)
    assert [len(weights) for _, _, weights in found][:7] == [30] * 7
    assert len(found) == (7 if last_batch == "drop" else 8)
    numbers = numbers_of([(images[weights == 1],) for images, _, weights in found])
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
    turns=st.lists(st.tuples(WORLD_SIZES, st.integers(0, 5)), max_size=4), last=WORLD_SIZES, ring=st.integers(12, 60)
)
def test_streaming_shows_every_sample_once_however_often_the_ranks_change(numbered_shards, train, turns, last, ring):
    options = {"mode": "streaming", "train": train, "last_batch": "fill", "weights": True, **PIXELS}
    options |= {"mix": None, "augment": None, "ring": ring} if train else {}
    found, _ = changing_ranks(numbered_shards, 12, [*turns, (last, 99)], **options)
    images, _, weights = joined(found)
    assert sorted(numbers_of([(images[weights == 1],)])) == list(range(NUM_SAMPLES))


def test_a_state_that_only_passed_through_other_ranks_goes_on_as_if_it_had_not(numbered_shards):
    options = {"mode": "streaming", "ring": 46, "seed": 2}
    expected = list(ranks(numbered_shards, 24, 1, **options)[0])
    found, _ = changing_ranks(numbered_shards, 24, [(1, 3), (2, 0), (4, 0), (1, 99)], **options)
    assert_same(found, expected)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_resident_resume_asks_for_the_outputs_from_there_on_alone(numbered_shards, engine, monkeypatch):
    """So it takes as long at the end of an epoch as at its beginning."""
    asked = []

    def recorded(number, spans):
        asked.extend(place for span in spans for place in span.numbers().tolist() if number == 0)
        return SpanBatch(number, spans)

    loader = FDTLoader(numbered_shards, 23, mode="resident", engine=engine)
    list(islice(loader, 8))
    resumed = after(loader.state_dict(), numbered_shards, 23, mode="resident", engine=engine)
    monkeypatch.setattr(epoch, "SpanBatch", recorded)
    list(resumed)
    assert asked == list(range(8 * 23, NUM_SAMPLES))


@pytest.mark.parametrize(("mix", "first"), [(None, 184), (MixUp(0.2, partners="batch"), 184), (MixUp(0.2), 161)])
def test_streaming_resume_reads_no_sample_before_those_of_the_ring(numbered_shards, monkeypatch, mix, first):
    """After 184 of 230: with a ring of 46 the 23 before them, but no shard of 60 that has none of these."""
    asked, opened = [], []
    read, real = epoch.read_samples, LocalShardFiles.in_order
    options = {"mode": "streaming", "ring": 46}
    loader = FDTLoader(numbered_shards, 23, **options)
    loader.mix = mix
    list(islice(loader, 8))
    resumed = after(loader.state_dict(), numbered_shards, 23, **options)
    monkeypatch.setattr(LocalShardFiles, "in_order", lambda self, shards: opened.append(shards) or real(self, shards))
    monkeypatch.setattr(
        epoch, "read_samples", lambda *given, **named: asked.append(given[3][0]) or read(*given, **named)
    )
    assert len(list(resumed)) == 2
    assert asked[0] == (first, first + 23)
    assert len(opened[0]) == 2  # what is opened later is the next epoch's


@pytest.mark.parametrize(
    "options",
    [
        {"ring": 53, "mix": FDT(anchor="epoch", probability=0.8)},
        {"ring": 53, "mix": OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.5})},
        {"mix": OneOf({MixUp(0.8, partners="batch"): 0.5, CutMix(1.0, partners="batch"): 0.5})},
    ],
)
def test_a_ring_is_as_it_was_after_a_resume_wherever_its_end_is(numbered_shards, options):
    """Sizes that divide nothing; the last batch is smaller, so more before it is in the ring than a batch less."""
    options |= {"mode": "streaming", "seed": 1}
    expected = list(FDTLoader(numbered_shards, 17, **options))
    loader = FDTLoader(numbered_shards, 17, **options)
    for number, _ in enumerate(loader):
        assert_same(list(after(loader.state_dict(), numbered_shards, 17, **options)), expected[number + 1 :])


PARTNERS = {"resident": ("set", "set"), "streaming": ("ring", "batch")}


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mix_that_changes_with_the_epoch_is_that_of_each_epoch(numbered_shards, mode, engine):
    """Given as a function, or set between epochs; a state within one keeps what that had."""
    first, second = PARTNERS[mode]
    mixes = [
        FDT(),
        FDT(max_images=2),
        None,
        MixUp(0.4, partners=first),
        CutMix(1.0, partners=second),
        OneOf([(MixUp(0.4), 0.5), (FDT(series=Power(2.5), label_smoothing=0.1), 0.3), (None, 0.2)]),
        FDT(),
    ]
    options = {"mode": mode, "engine": engine, "seed": 3} | ({"ring": 60} if mode == "streaming" else {})
    by_function = FDTLoader(numbered_shards, 32, mix=lambda epoch: mixes[epoch], **options)
    by_hand = FDTLoader(numbered_shards, 32, **options)
    for number, mix in enumerate(mixes):
        by_hand.mix = mix
        alone = FDTLoader(numbered_shards, 32, mix=lambda epoch, mix=mix: mix, **options)
        alone.set_epoch(number)
        expected = list(alone)
        assert_same(list(by_function), expected)
        batches = iter(by_hand)
        found = list(islice(batches, 3))
        by_hand.mix = FDT(max_images=3)  # of what comes next
        state = json.loads(json.dumps(by_hand.state_dict()))
        assert_same(found + list(batches), expected)
        resumed = FDTLoader(numbered_shards, 32, **options)
        resumed.load_state_dict(state)
        assert resumed.mix == FDT(max_images=3)
        assert_same(list(resumed), expected[3:])
        assert resumed.mix == FDT(max_images=3)
        assert (joined(resumed)[1] > 0).sum(1).max() <= 3


def test_a_state_of_a_mix_that_cannot_be_made_again_says_to_set_it(numbered_shards):
    class Strange:
        def weights(self, k):
            return np.full(k, 1 / k)

    loader = FDTLoader(numbered_shards, 32)
    loader.mix = FDT(series=Strange())
    state = json.loads(json.dumps(loader.state_dict()))
    other = FDTLoader(numbered_shards, 32)
    with pytest.raises(ValueError, match=r"a mix that cannot be made of it, .*Strange.*: set loader.mix to that mix"):
        other.load_state_dict(state)
    other.mix = FDT(series=Strange())
    other.load_state_dict(state)
    assert_same(list(other), list(loader))


@pytest.mark.parametrize("mode", MODES)
def test_a_function_of_the_epoch_that_fails_does_so_in_its_own_epoch(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mode=mode, mix=lambda epoch: [FDT(), "none"][epoch])
    assert len(list(loader)) == len(loader)
    with pytest.raises(ValueError, match=r"mix\(1\) must give an FDT, MixUp, CutMix, OneOf or None, got 'none'"):
        list(loader)


@pytest.mark.parametrize("mode", MODES)
def test_a_function_that_ends_with_the_run_is_not_asked_for_more_by_its_state(numbered_shards, mode):
    mixes = [FDT(max_images=2), FDT(max_images=3)]
    loader = FDTLoader(numbered_shards, 32, mode=mode, mix=lambda epoch: mixes[epoch])
    for _ in mixes:
        list(loader)
    assert loader.mixing
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = FDTLoader(numbered_shards, 32, mode=mode, mix=lambda epoch: mixes[epoch % 2])
    resumed.load_state_dict(state)
    assert resumed.epoch == 2
    assert (joined(resumed)[1] > 0).sum(1).max() == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("switched", ["mix", "mixing"])
def test_a_state_without_mixing_is_loaded_by_a_loader_with_one(numbered_shards, mode, switched):
    loader = FDTLoader(numbered_shards, 32, mode=mode)
    setattr(loader, switched, None if switched == "mix" else False)
    states = [loader.state_dict()]
    batches = iter(loader)
    next(batches)
    states.append(loader.state_dict())
    for number, state in enumerate(states):
        resumed = FDTLoader(numbered_shards, 32, mode=mode)
        resumed.load_state_dict(state)
        assert not resumed.mixing
        assert resumed.mix == loader.mix
        assert (joined(resumed)[1] > 0).sum() == NUM_SAMPLES - 32 * number


@pytest.mark.parametrize("prefetch", [2, 10])
def test_an_epoch_of_fewer_batches_than_dali_works_ahead_ends_well(png_shards, prefetch):
    """With a mix of its own for each epoch, which ends the pipeline; DALI is then fed the last batch again."""
    options = {"mode": "streaming", "ring": 128, "prefetch": prefetch, "augment": None}
    loader = FDTLoader(png_shards, 100, mix=lambda epoch: FDT(max_images=2 + epoch), **options)
    for epoch_number in range(3):
        alone = FDTLoader(png_shards, 100, mix=FDT(max_images=2 + epoch_number), **options | {"prefetch": 0})
        alone.set_epoch(epoch_number)
        assert_same(list(loader), list(alone))


def test_a_last_batch_that_ranks_without_a_sample_fill_up_counts_none_twice(numbered_shards):
    """After 7 batches of 2 ranks 6 samples are left for 8."""
    options = {"mode": "streaming", "augment": None, "last_batch": "fill", "weights": True, "mix": None, **PIXELS}
    before = ranks(numbered_shards, 32, 2, **options)
    seen = [list(islice(loader, 7)) for loader in before]
    after_that = ranks(numbered_shards, 32, 8, **options)
    for loader in after_that:
        loader.load_state_dict(before[0].state_dict())
    batches = [batch for batches in seen for batch in batches] + [batch for loader in after_that for batch in loader]
    counted = np.bincount(numbers_of(batches), torch.cat([batch[2] for batch in batches]).numpy())
    assert counted.tolist() == [1] * NUM_SAMPLES


def test_other_ranks_may_need_another_ring_for_the_same_global_batch(numbered_shards):
    four = ranks(numbered_shards, 64, 4, mode="streaming", ring=20)
    next(iter(four[0]))
    for loader in ranks(numbered_shards, 64, 2, mode="streaming", ring=32):
        loader.load_state_dict(four[0].state_dict())
    with pytest.raises(ValueError, match="ring is 20 there and 24 here"):
        ranks(numbered_shards, 64, 4, mode="streaming", ring=24)[0].load_state_dict(four[0].state_dict())


def test_a_ring_larger_than_the_set_takes_no_memory_for_what_never_comes(numbered_shards):
    loader = FDTLoader(numbered_shards, 32, mode="streaming", ring=10**12, seed=1)
    assert loader.ring == 10**12
    assert_same(list(loader), list(FDTLoader(numbered_shards, 32, mode="streaming", ring=2000, seed=1)))


@pytest.mark.parametrize(
    "state", [{"version": 2, "epoch": 4, "batch": 3}, {"version": 3, "epoch": 4, "batch": 3, "mix_next": {"odd": 1}}]
)
def test_a_loader_that_is_not_strict_takes_the_epoch_of_a_state_that_it_cannot_read(numbered_shards, state):
    loader = FDTLoader(numbered_shards, 32, strict_state=False)
    whole = {**loader.state_dict(), **state} if state["version"] == 3 else state
    with pytest.raises(ValueError, match="strict_state=False"):
        FDTLoader(numbered_shards, 32).load_state_dict(whole)
    with pytest.warns(UserWarning, match="epoch 4 is begun anew, with this loader's own mix: "):
        loader.load_state_dict(whole)
    assert loader.epoch == 4


@pytest.mark.parametrize("batches", [0, 3, 5])
def test_a_loader_that_is_not_strict_begins_the_epoch_of_another_loaders_state_anew(numbered_shards, batches):
    """5 batches are an epoch, so the next one is begun."""
    other = FDTLoader(numbered_shards, 46, seed=1)
    other.set_epoch(7)
    list(islice(other, batches))
    state = other.state_dict()
    with pytest.raises(ValueError, match=r"seed is 1 there and 2 here; global_batch_size.*strict_state=False"):
        FDTLoader(numbered_shards, 32, seed=2).load_state_dict(state)
    loader = FDTLoader(numbered_shards, 32, seed=2, strict_state=False)
    with pytest.warns(
        UserWarning, match=f"epoch {7 + (batches == 5)} is begun anew, with .*: the state is of another loader"
    ):
        loader.load_state_dict(state)
    alone = FDTLoader(numbered_shards, 32, seed=2)
    alone.set_epoch(7 + (batches == 5))
    assert_same(list(loader), list(alone))
