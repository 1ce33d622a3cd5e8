"""What a trainer may ask of a loader: forms of targets, dtypes, mixing off, statistics, ranges, no pickling."""

import copy
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from fdt_pipeline import FDT, Augment, FDTLoader, Uniform, sparse_targets
from fdt_pipeline.loader.stats import enough_samples
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, numbers_of, ranks
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

pytestmark = pytest.mark.dali

MODES = ("resident", "streaming")


def epoch_of(loader):
    return [torch.cat(field) for field in zip(*loader, strict=True)]


@pytest.mark.parametrize("fdt", [FDT(), FDT(max_images=3), FDT(series=Uniform(), min_images=2), None])
def test_sparse_targets_are_the_soft_ones_without_their_zeros(numbered_shards, fdt):
    _, soft = epoch_of(FDTLoader(numbered_shards, 50, mode="resident", seed=3, mix=fdt))
    most = fdt.most_images(7) if fdt else 1
    classes, weights = sparse_targets(soft, most)
    assert torch.equal(torch.zeros_like(soft).scatter_add_(1, classes, weights), soft)
    assert (classes.shape, classes.dtype) == ((NUM_SAMPLES, most), torch.int64)
    assert (weights.diff(dim=1) <= 0).all()
    assert (classes[weights == 0] == 0).all()
    if most > 1:
        with pytest.raises(ValueError, match=f"a target has {most} classes, more than k=1: pass k={most}"):
            sparse_targets(soft, 1)


@pytest.mark.parametrize("mode", MODES)
def test_dominant_targets_are_the_class_of_the_largest_weight(numbered_shards, mode):
    soft, dominant = (
        epoch_of(FDTLoader(numbered_shards, 50, mode=mode, mix=FDT(targets=targets)))[1]
        for targets in ("soft", "dominant")
    )
    assert torch.equal(dominant, torch.nn.functional.one_hot(soft.argmax(1), 7).float())


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_cast_to_at_the_end(numbered_shards, mode):
    whole, cast = (
        next(iter(FDTLoader(numbered_shards, 16, mode=mode, channels_last=True, dtype=dtype)))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(cast[0], whole[0].bfloat16())
    assert cast[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cast[1], whole[1])


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("mode", MODES)
def test_without_mixing_an_epoch_shows_every_sample_once_in_the_same_form(numbered_shards, mode, engine):
    loader = FDTLoader(numbered_shards, 32, mode=mode, engine=engine, augment=None, weights=True, **PIXELS)
    mixed = list(loader)
    loader.mixing = False
    assert not loader.mixing
    for _ in range(2):
        whole = list(loader)
        numbers = numbers_of(whole)
        assert sorted(numbers) == list(range(NUM_SAMPLES))
        assert [batch[1].shape for batch in whole] == [batch[1].shape for batch in mixed]
        labels = torch.cat([batch[1] for batch in whole]).argmax(1)
        assert np.array_equal(labels.numpy(), LABELS[numbers])
    loader.mixing = True
    assert max((batch[1] > 0).sum(1).max() for batch in loader) > 1


@pytest.mark.parametrize("mode", MODES)
def test_mixing_is_switched_between_iterations_and_not_in_one(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mode=mode)
    expected = epoch_of(loader)[1]
    loader.set_epoch(0)
    targets = []
    for _, target in loader:
        loader.mixing = False
        targets.append(target)
    assert torch.equal(torch.cat(targets), expected)
    assert torch.equal(epoch_of(loader)[1].amax(1), torch.ones(NUM_SAMPLES))


def test_augmentation_stays_when_mixing_is_switched_off(numbered_shards):
    loader = FDTLoader(numbered_shards, 64, mix=FDT(), augment=Augment(pad=2), seed=1)
    loader.mixing = False
    plain = FDTLoader(numbered_shards, 64, mix=None, augment=Augment(pad=2), seed=1)
    for a, b in zip(epoch_of(loader), epoch_of(plain), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "value"), [("mix", None), ("mode", "streaming"), ("batch_size", 8), ("mixng", False), ("_nxet", 0)]
)
def test_nothing_but_mixing_can_be_set_so_that_no_assignment_is_lost(numbered_shards, name, value):
    loader = FDTLoader(numbered_shards, 32)
    with pytest.raises(AttributeError, match=f"{name} of an FDTLoader cannot be set, only `mixing` can: make a new"):
        setattr(loader, name, value)
    assert loader.mix == FDT()
    with pytest.raises(AttributeError, match="batches"):
        loader.stats.batches = 0


def test_statistics_count_what_the_consumer_was_given(numbered_shards):
    loader = FDTLoader(numbered_shards, 50, mode="streaming", mix_window=100, prefetch=2)
    assert (loader.stats.batches, loader.stats.images, loader.stats.windows) == (0, 0, 0)
    batches = iter(loader)
    next(batches)
    assert (loader.stats.batches, loader.stats.images) == (1, 50)
    list(batches)
    list(loader)
    stats = loader.stats
    assert (stats.batches, stats.images, stats.windows, stats.bad_samples) == (10, 2 * NUM_SAMPLES, 6, 0)
    assert stats.wait_seconds > 0
    assert stats.images_per_output == stats.images_per_output_of_all == 4


@pytest.fixture(scope="module")
def sorted_shards(tmp_path_factory):
    """Ten classes of 20 samples one after the other, as a foreign set may have them; our own order mixes them."""
    folder = tmp_path_factory.mktemp("sorted") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fdt_pipeline.shards.plan.interleaved_order", lambda labels, *_: np.arange(len(labels)))
        write_shards(ArraySource(numbered_images(200), np.arange(200) // 20), folder, samples_per_shard=20)
    return folder


def test_windows_that_lack_classes_are_counted_and_warned_of_with_a_window_that_does(sorted_shards):
    loader = FDTLoader(sorted_shards, 20, mode="streaming", mix_window=60)
    with pytest.warns(
        UserWarning, match=r"this one has \d of 10.*pass mix_window=44 or more.*shuffle the set"
    ) as caught:
        targets = epoch_of(loader)[1]
    list(loader)
    assert len(caught) == 1
    stats = loader.stats
    assert stats.images_per_output_of_all == 5.5
    assert 2 < stats.images_per_output < 5
    assert (targets > 0).sum(1).float().mean().item() == pytest.approx(stats.images_per_output, abs=0.6)


def test_a_window_that_was_warned_of_at_first_is_not_warned_of_again(sorted_shards):
    with pytest.warns(UserWarning, match="will often hold fewer than 10 classes"):
        loader = FDTLoader(sorted_shards, 20, mode="streaming", mix_window=20)
    list(loader)
    assert loader.stats.images_per_output < 3


def test_a_rare_class_asks_for_a_larger_window():
    assert enough_samples(np.array([100] * 10)) < 60  # about 10 log(100)
    rare = np.array([1000, 1000, 10])
    window = enough_samples(rare)
    assert ((1 - rare / rare.sum()) ** window).sum() <= 0.03
    assert ((1 - rare / rare.sum()) ** (window - 1)).sum() > 0.03
    assert enough_samples(np.array([5, 0, 5])) <= 10


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_cannot_be_pickled_or_copied_and_says_why(numbered_shards, duplicate):
    with pytest.raises(TypeError, match=r"cannot be pickled or copied: .* checkpoint keeps state_dict\(\)"):
        duplicate(FDTLoader(numbered_shards, 8))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_profiler_sees_waiting_and_reading(numbered_shards, prefetch):
    loader = FDTLoader(numbered_shards, 46, mode="streaming", mix_window=46, prefetch=prefetch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        list(loader)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["fdt_pipeline.wait"] == len(loader) + 1
    if not prefetch:  # torch.profiler sees no threads that it did not start
        assert counts["fdt_pipeline.read_window"] == 5


def test_a_gpu_gets_nvtx_ranges(numbered_shards, monkeypatch):
    names = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", names.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: names.append("end"))
    list(FDTLoader(numbered_shards, 230, mode="resident"))
    assert names == ["fdt_pipeline.wait", "end"] * 2


def test_pinned_memory_is_asked_for_each_tensor(numbered_shards, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    loader = FDTLoader(numbered_shards, 230, mode="resident", weights=True, pin_memory=True)
    [(images, targets, weights)] = loader
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in (images, targets, weights)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"last_batch": "full"}, "last_batch must be one of"),
        ({"on_bad": "skip", "mode": "streaming"}, "on_bad must be one of"),
        ({"on_bad": "substitute", "mode": "resident"}, "on_bad is for streaming"),
    ],
)
def test_bad_arguments_are_refused_when_the_loader_is_built(numbered_shards, options, match):
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, 8, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_pinned_memory_without_a_gpu_is_refused(numbered_shards):
    with pytest.raises(ValueError, match="pin_memory=True needs a GPU"):
        FDTLoader(numbered_shards, 8, pin_memory=True)


def test_mixing_is_not_switched_on_where_there_is_none(numbered_shards):
    for options in ({"mix": None}, {"train": False}):
        loader = FDTLoader(numbered_shards, 8, **options)
        assert not loader.mixing
        loader.mixing = False
        with pytest.raises(ValueError, match="no mix to switch on"):
            loader.mixing = True


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_has_no_output_in_the_last_batch_is_filled_up_too(numbered_shards, mode, resumed):
    """230 outputs are 14 batches of 16, and 6 more for eight ranks; other ranks may have done all but that batch."""
    seen = np.zeros(NUM_SAMPLES)
    options = {"train": False, "mode": mode, "last_batch": "fill", "weights": True, **PIXELS}
    state = None
    if resumed:
        for loader in ranks(numbered_shards, 16, 2, **options):
            count(seen, islice(loader, len(loader) - 1))
            state = loader.state_dict()
    for loader in ranks(numbered_shards, 16, 8, **options):
        if state:
            loader.load_state_dict(state)
        batches = list(loader)
        assert {len(field) for batch in batches for field in batch} == {2}
        count(seen, batches)
    assert (seen == 1).all()


def count(seen, batches):
    """Add the weights of the batches to those of their samples."""
    for images, _, weights in batches:
        np.add.at(seen, numbers_of([(images,)]), weights.numpy())


@pytest.mark.parametrize("mode", MODES)
def test_an_iterator_that_is_never_moved_takes_no_epoch(numbered_shards, mode):
    """Lightning makes two for each epoch, and sets the epoch through `sampler`."""
    loader = FDTLoader(numbered_shards, 50, mode=mode)
    expected = epoch_of(loader)
    loader.set_epoch(0)
    iter(loader)
    iter(loader)
    loader.sampler.set_epoch(0)
    assert loader.epoch == 0
    for a, b in zip(epoch_of(loader), expected, strict=True):
        assert torch.equal(a, b)
    assert loader.epoch == 1


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_more_classes_than_the_native_engine_takes_are_left_to_torch_when_the_loader_is_built(many_classes, mode):
    options = {"mode": mode, "mix": FDT(max_images=2), "augment": None}
    with pytest.warns(UserWarning, match=r"torch engine is used.* up to 65,536 classes, this set has 65,537"):
        loader = FDTLoader(many_classes, 10, **options)
    images, targets = next(iter(loader))
    assert loader.engine == "torch"
    assert targets.shape == (10, 65_537)
    assert images.shape == (10, 3, 6, 5)
    with pytest.raises(ValueError, match=r"up to 65,536 classes, this set has 65,537: FDTLoader\(engine=\"torch\"\)"):
        FDTLoader(many_classes, 10, engine="native", **options)


@pytest.mark.parametrize("engine", ["auto", "native", "torch"])
@pytest.mark.parametrize("mode", ["auto", "resident", "streaming"])
def test_an_instruction_set_that_is_not_here_is_an_error_when_the_loader_is_built(
    numbered_shards, monkeypatch, mode, engine
):
    monkeypatch.setenv("FDT_PIPELINE_ISA", "nonsense")
    with pytest.raises(ValueError, match=r"FDT_PIPELINE_ISA must be one of .* got 'nonsense': unset it"):
        FDTLoader(numbered_shards, 10, mode=mode, engine=engine)
