"""What a trainer may ask of a loader: sparse targets, mixing off, statistics, profilers, closing, no pickling."""

import copy
import inspect
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, LoaderStats, MixUp, Uniform, sparse_targets
from tests.loading import MODES, PIXELS, assert_same, joined, numbers_of
from tests.numbered import LABELS, NUM_SAMPLES

pytestmark = pytest.mark.dali


@pytest.mark.parametrize(
    "mix",
    [FDT(), FDT(max_images=3), FDT(series=Uniform(), min_images=2), MixUp(0.2), CutMix(1.0, probability=0.5), None],
)
def test_sparse_targets_are_the_soft_ones_without_their_zeros(numbered_shards, mix):
    _, soft = joined(FDTLoader(numbered_shards, 50, mode="resident", seed=3, mix=mix))
    most = mix.most_images(7) if mix else 1
    classes, weights = sparse_targets(soft, most)
    assert torch.equal(torch.zeros_like(soft).scatter_add_(1, classes, weights), soft)
    assert (classes.shape, classes.dtype) == ((NUM_SAMPLES, most), torch.int64)
    assert (weights.diff(dim=1) <= 0).all()
    assert (classes[weights == 0] == 0).all()
    if most > 1:
        with pytest.raises(ValueError, match=f"a target has {most} classes, more than k=1: pass k={most}"):
            sparse_targets(soft, 1)


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
        assert np.array_equal(joined(whole)[1].argmax(1).numpy(), LABELS[numbers])
    loader.mixing = True
    loader.set_epoch(0)
    assert_same(list(loader), mixed)


@pytest.mark.parametrize("mode", MODES)
def test_mixing_is_switched_between_iterations_and_not_in_one(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, mode=mode)
    expected = list(loader)
    loader.set_epoch(0)
    found = []
    for batch in loader:
        loader.mixing = False
        found.append(batch)
    assert_same(found, expected)
    assert torch.equal(joined(loader)[1].amax(1), torch.ones(NUM_SAMPLES))


@pytest.mark.parametrize("options", [{"mix": None}, {"train": False}])
def test_mixing_is_not_switched_on_where_there_is_none(numbered_shards, options):
    loader = FDTLoader(numbered_shards, 8, **options)
    assert loader.mixing is False
    loader.mixing = False
    with pytest.raises(ValueError, match="no mix to switch on"):
        loader.mixing = True


def test_augmentation_stays_when_mixing_is_switched_off(numbered_shards):
    loader = FDTLoader(numbered_shards, 64, mix=FDT(), augment=Augment(pad=2), seed=1)
    loader.mixing = False
    assert_same(list(loader), list(FDTLoader(numbered_shards, 64, mix=None, augment=Augment(pad=2), seed=1)))


@pytest.mark.parametrize(("name", "value"), [("mode", "streaming"), ("batch_size", 8), ("mixng", False), ("_nxet", 0)])
def test_nothing_but_mixing_can_be_set_so_that_no_assignment_is_lost(numbered_shards, name, value):
    loader = FDTLoader(numbered_shards, 32)
    with pytest.raises(
        AttributeError, match=f"{name} of an FDTLoader cannot be set, only `mix` and `mixing` can: make a new"
    ):
        setattr(loader, name, value)
    assert loader.mix == FDT()
    with pytest.raises(AttributeError, match="batches"):
        loader.stats.batches = 0


def test_statistics_count_what_the_consumer_was_given(numbered_shards):
    """Each look at them stays what it was."""
    loader = FDTLoader(numbered_shards, 50, mode="streaming", ring=100, prefetch=2)
    before = loader.stats
    batches = iter(loader)
    next(batches)
    during = loader.stats
    list(batches)
    list(loader)
    stats = loader.stats
    assert (before.batches, before.images) == (0, 0)
    assert (during.batches, during.images) == (1, 50)
    assert (stats.batches, stats.images, stats.bad_samples) == (10, 2 * NUM_SAMPLES, 0)
    assert stats.wait_seconds > during.wait_seconds > 0
    assert stats.images_per_output == stats.images_per_output_of_all == 4


@pytest.mark.parametrize("batch_size", [2, None])
def test_a_loader_inside_of_a_data_loader_says_that_it_takes_its_place(numbered_shards, batch_size):
    loader = torch.utils.data.DataLoader(FDTLoader(numbered_shards, 2), batch_size=batch_size)
    with pytest.raises(TypeError, match="gives whole batches: iterate over it, in the place of a DataLoader"):
        next(iter(loader))


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_cannot_be_pickled_or_copied_and_says_why(numbered_shards, duplicate):
    with pytest.raises(TypeError, match=r"cannot be pickled or copied: .* checkpoint keeps state_dict\(\)"):
        duplicate(FDTLoader(numbered_shards, 8))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_profiler_sees_waiting_and_reading(numbered_shards, prefetch):
    loader = FDTLoader(numbered_shards, 46, mode="streaming", ring=46, prefetch=prefetch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        list(loader)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["fdt_pipeline.wait"] == len(loader) + 1
    if not prefetch:  # torch.profiler sees no threads that it did not start
        assert counts["fdt_pipeline.read_samples"] == 5


def test_pinned_memory_is_asked_for_each_tensor(numbered_shards, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    loader = FDTLoader(numbered_shards, 230, mode="resident", weights=True, pin_memory=True)
    [batch] = loader
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in batch]


@pytest.mark.parametrize("mode", MODES)
def test_an_iterator_that_is_never_moved_takes_no_epoch(numbered_shards, mode):
    """Lightning makes two for each epoch, and sets the epoch through `sampler`."""
    loader = FDTLoader(numbered_shards, 50, mode=mode)
    expected = list(loader)
    loader.set_epoch(0)
    iter(loader)
    iter(loader)
    loader.sampler.set_epoch(0)
    assert loader.epoch == 0
    assert_same(list(loader), expected)
    assert loader.epoch == 1


def test_epochs_out_of_range_and_closed_loaders_are_refused(numbered_shards):
    with FDTLoader(numbered_shards, 8) as loader:
        with pytest.raises(ValueError, match="epoch must be in"):
            loader.set_epoch(-1)
        loader.set_epoch(2**32 - 1)
        assert len(list(loader)) == len(loader)
        with pytest.raises(ValueError, match="epoch must be in"):
            iter(loader)
        loader.set_epoch(0)
        batches = iter(loader)
        next(batches)
    assert list(batches) == []
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def test_help_names_every_argument_with_its_default_and_every_field_of_stats():
    text = " ".join(FDTLoader.__doc__.split())
    parameters = dict(inspect.signature(FDTLoader).parameters)
    said = {"mix": "mix=FDT():", "augment": "augment=Augment(pad=4, flip=True):", "std": "std=256:"}
    for name, parameter in parameters.items():
        no_default = parameter.default is inspect.Parameter.empty
        default = str(parameter.default) if name == "dtype" else repr(parameter.default).replace("'", '"')
        assert said.get(name, f"{name}: " if no_default else f"{name}={default}") in text, name
    for field in fields(LoaderStats):
        assert f" {field.name}" in text, field.name
    assert "Without `mix=` it mixes" in text
