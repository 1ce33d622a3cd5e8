"""fdt_pipeline(...) under DALI's own iterators: the outputs of FDTLoader, with every supported DALI."""

import gc
import shutil

import pytest
import torch
from nvidia.dali.plugin.pytorch import DALIClassificationIterator, DALIGenericIterator, LastBatchPolicy
from PIL import Image

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, MixUp, OneOf, Power, fdt_pipeline
from fdt_pipeline.loader import pipeline as pipeline_function
from fdt_pipeline.loader.memory import read_pool
from fdt_pipeline.shards import ShardError, write_shards
from fdt_pipeline.sources import open_source
from tests.folders import parse_index
from tests.loading import MODES, PIXELS, assert_same, joined, overwrite
from tests.numbered import NUM_SAMPLES, image_numbers, numbered_images

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]

BATCH = 46  # 5 windows of the same size, as FDTLoader cuts an epoch, too
MIXINGS = {
    "fdt": {},
    "power": {"mix": FDT(min_images=2, max_images=3, series=Power(2), probability=0.7), "augment": Augment(pad=2)},
    "anchor": {"mix": FDT(anchor="epoch", targets="dominant"), "augment": None},
    "none": {"mix": None},
    "one of": {"mix": OneOf({MixUp(0.8, label_smoothing=0.1): 0.5, CutMix(1.0): 0.5})},
}
each_mixing = pytest.mark.parametrize("mixing", MIXINGS.values(), ids=MIXINGS)
each_mode = pytest.mark.parametrize("mode", MODES)
# 23 samples of 7 classes are too few for 7 images a sum.
small_windows = pytest.mark.filterwarnings("ignore:.*will often hold fewer than .* classes:UserWarning")


def make(shards, batch_size=BATCH, **options):
    return fdt_pipeline(shards, batch_size=batch_size, **{"num_threads": 2, "device_id": None, **options})


def iterate(shards, batch_size=BATCH, auto_reset=False, **options):
    return DALIGenericIterator(make(shards, batch_size, **options), ["images", "targets"], auto_reset=auto_reset)


def rest(iterator):
    """What is left of the epoch, as (images, targets) pairs; the iterator then stands at the next.

    No `for`, which would reset the iterator: DALI does so as soon as it has worked ahead to the end of the epoch."""
    batches = [pair(batch) for batch in iter(lambda: next(iterator, None), None)]
    iterator.reset()
    return batches


def pair(batch):
    """Of the one pipeline of an iterator."""
    [fields] = batch
    return fields["images"], fields["targets"]


def load(shards, batch_size=BATCH, plan_seed=0, **options):
    """The loader that gives the same."""
    window = {"ring": batch_size} if options["mode"] == "streaming" else {}
    return FDTLoader(shards, batch_size, seed=plan_seed, engine="native", **window, **options)


@each_mixing
@each_mode
def test_epochs_are_those_of_the_loader_one_a_reset(numbered_shards, mode, mixing):
    iterator = iterate(numbered_shards, mode=mode, plan_seed=7, epoch=2, **mixing)
    loader = load(numbered_shards, mode=mode, plan_seed=7, **mixing)
    loader.set_epoch(2)
    for _ in range(3):
        assert_same(rest(iterator), list(loader))


FORMS = {
    "a smaller last batch": {"batch_size": 64, "mix": None},
    "float16": {"dtype": torch.float16, "mean": (1, 2, 3), "std": (4.0, 5.0, 6.0)},
    "augment": {"augment": Augment(pad=1, flip=False)},
    "repeated gray": {"shards": "few", "channels": 3, "mean": 0, "batch_size": 100},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@each_mode
def test_batches_take_every_form_that_the_loaders_do(numbered_shards, few_shards, mode, form):
    form = {"mode": mode, "shards": numbered_shards, **form}
    form |= {"shards": few_shards / "train"} if form["shards"] == "few" else {}
    assert_same(rest(iterate(**form)), list(load(**form)))


@pytest.mark.parametrize("partners", [None, "batch"])
def test_a_smaller_last_batch_is_mixed_within_itself_and_all_full_ones_are_the_loaders(numbered_shards, partners):
    for last_batch, num_same in (("partial", 3), ("drop", 3), ("fill", 4)):
        options = {"batch_size": 64, "mode": "streaming", "last_batch": last_batch}
        found = rest(iterate(numbered_shards, mix=MixUp(0.8, partners=partners), **options))
        expected = list(load(numbered_shards, mix=MixUp(0.8), **options))
        assert_same(found[:num_same], expected[:num_same])
        for (images, _), (others, _) in zip(found[num_same:], expected[num_same:], strict=True):
            assert len(images) == len(others) == 38
            assert not torch.equal(images, others)


@each_mode
def test_channels_last_is_dalis_hwc(numbered_shards, mode):
    found = rest(iterate(numbered_shards, mode=mode, channels_last=True))
    assert found[0][0].shape == (BATCH, 6, 5, 3)
    expected = list(load(numbered_shards, mode=mode))
    assert_same([(images.permute(0, 3, 1, 2), targets) for images, targets in found], expected)


@pytest.fixture(scope="module")
def file_shards(tmp_path_factory):
    """24 images as PNG files, of two sizes and 4 classes, in 3 shards."""
    photos = tmp_path_factory.mktemp("files")
    for number, image in enumerate(numbered_images(24, (12, 16, 3))):
        path = photos / "photos" / str(number % 4) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if number % 3 else image[:8]).save(path)
    write_shards(open_source(photos / "photos"), photos / "shards", "png", samples_per_shard=10)
    return photos / "shards"


@small_windows
def test_files_are_decoded_and_resized_as_by_the_loader(file_shards):
    """A size is for streaming, so that mode="auto" is that; without one they are refused."""
    iterator = iterate(file_shards, 12, size=(9, 7), plan_seed=3)
    loader = load(file_shards, 12, size=(9, 7), plan_seed=3, mode="streaming")
    epochs = [rest(iterator) for _ in range(2)]
    for epoch in epochs:
        assert_same(epoch, list(loader))
    for mix in (FDT(), CutMix(1.0)):
        with pytest.raises(ValueError, match=r"holds images of different sizes: pass size=\(height, width\)"):
            make(file_shards, mix=mix)


@pytest.mark.parametrize("world_size", [2, 4])
@each_mixing
def test_ranks_share_the_same_global_batches_of_a_set_in_memory(numbered_shards, mixing, world_size):
    """The last of which is 38 outputs, 9 or 10 for each of 4 ranks."""
    options = {"mode": "resident", "world_size": world_size, **mixing}
    ranks = [iterate(numbered_shards, 64 // world_size, rank=rank, **options) for rank in range(world_size)]
    loader = load(numbered_shards, 64, mode="resident", **mixing)
    for _ in range(2):
        assert_same([joined(batch) for batch in zip(*map(rest, ranks), strict=True)], list(loader))


@small_windows
@each_mixing
def test_a_rank_streams_what_the_loader_of_that_rank_does(numbered_shards, mixing, monkeypatch):
    """Also where torchrun says the rank."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        iterator = iterate(numbered_shards, 23, mode="streaming", **mixing)
        loader = load(numbered_shards, 23, mode="streaming", rank=rank, world_size=2, **mixing)
        for _ in range(2):
            assert_same(rest(iterator), list(loader))


def numbers_of(batches):
    return [image_numbers(images).tolist() for images, _ in batches]


@each_mode
def test_ranks_that_are_known_late_end_a_pipeline_that_was_made_for_all_of_the_data(numbered_shards, monkeypatch, mode):
    given, iterator = (iterate(numbered_shards, mode=mode, **ranks) for ranks in ({"rank": 0, "world_size": 1}, {}))
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert len(rest(given)) == 5, "as it was asked"
    with pytest.raises(RuntimeError, match=r"built for rank 0 of 1, and torch\.distributed says rank 1 of 2"):
        rest(iterator)


@each_mode
def test_a_last_batch_that_is_not_full_is_dropped_or_filled(numbered_shards, mode):
    options = {"mode": mode, "mix": None, "augment": None, **PIXELS}
    partial, drop, fill = (
        numbers_of(rest(iterate(numbered_shards, 64, last_batch=last_batch, **options)))
        for last_batch in ("partial", "drop", "fill")
    )
    assert [len(batch) for batch in partial] == [64, 64, 64, 38]
    assert drop == partial[:3]
    assert fill[:3] == partial[:3]
    again = partial[0][:26] if mode == "resident" else partial[2][-26:]
    assert fill[3] == partial[3] + again


def with_size(*arguments, **options):
    with pytest.warns(Warning, match="Please set `reader_name`"):  # DALI's, of any size
        return DALIGenericIterator(*arguments, output_map=["images", "targets"], **options)


@pytest.mark.parametrize("policy", LastBatchPolicy)
@each_mode
def test_full_batches_go_with_every_policy_of_dalis_iterators(numbered_shards, mode, policy):
    """They want the number of samples then, and full batches."""
    options = {"mode": mode, "last_batch": "fill"}
    iterator = with_size(make(numbered_shards, 64, **options), size=NUM_SAMPLES, last_batch_policy=policy)
    alone = iterate(numbered_shards, 64, **options)
    for _ in range(2):
        expected = rest(alone)[: len(iterator)]
        if policy == LastBatchPolicy.PARTIAL:
            expected[-1] = tuple(field[:38] for field in expected[-1])
        assert_same(rest(iterator), expected)


@each_mode
def test_one_iterator_takes_the_pipelines_of_several_ranks(numbered_shards, mode):
    options = {"mode": mode, "mix": None, "world_size": 2, "last_batch": "drop"}
    pipelines = [make(numbered_shards, 23, rank=rank, **options) for rank in range(2)]
    iterator = with_size(pipelines, size=230)
    alone = [iterate(numbered_shards, 23, rank=rank, **options) for rank in range(2)]
    for _ in range(2):
        both = list(iterator)
        iterator.reset()
        for rank, other in enumerate(alone):
            assert_same([pair([batch[rank]]) for batch in both], rest(other))


def test_the_classification_iterator_names_them_data_and_label(numbered_shards):
    iterator = DALIClassificationIterator(make(numbered_shards, mode="resident"), auto_reset=True)
    loader = load(numbered_shards, mode="resident")
    for _ in range(2):
        assert_same([(batch["data"], batch["label"]) for [batch] in iterator], list(loader))


@pytest.fixture(params=MODES)
def resumable(request, numbered_shards):
    """A function that makes the same iterator anew, after a checkpoint if it is given one."""

    def begin(**options):
        return iterate(numbered_shards, mode=request.param, plan_seed=5, enable_checkpointing=True, **options)

    return begin


@pytest.mark.parametrize(("epoch", "batches"), [(0, 0), (0, 1), (0, 4), (1, 0), (1, 2), (1, 3)])
def test_dalis_checkpoints_resume_after_any_batch_of_any_epoch(resumable, epoch, batches):
    iterator = resumable()
    for _ in range(epoch):
        rest(iterator)
    for _ in range(batches):
        next(iterator)
    [checkpoint] = iterator.checkpoints()
    resumed = resumable(checkpoint=checkpoint, num_threads=1, prefetch_queue_depth=4)
    for _ in range(2):
        assert_same(rest(resumed), rest(iterator))


@pytest.mark.parametrize("was_free", [True, False])
def test_an_auto_pipeline_goes_on_in_the_mode_of_its_checkpoint_whatever_memory_is_free(
    numbered_shards, monkeypatch, was_free
):
    def begin(is_free, **options):
        monkeypatch.setattr("fdt_pipeline.loader.memory.available_memory", lambda: 10**9 * is_free)
        return iterate(numbered_shards, mode="auto", enable_checkpointing=True, **options)

    iterator = begin(was_free)
    next(iterator)
    resumed = begin(not was_free, checkpoint=iterator.checkpoints()[0])
    assert_same(rest(resumed), rest(iterator))


@pytest.mark.parametrize("after", ["the last batch", "the end", "the reset"])
def test_dalis_checkpoints_at_the_end_of_an_epoch_go_on_with_the_next(resumable, after):
    """After the last batch the end has not been seen yet: 1.34 resumes with the empty rest, 2.4 with the next epoch."""
    iterator, whole = resumable(), resumable()
    for _ in range(5):
        next(iterator)
    if after != "the last batch":
        assert next(iterator, None) is None
    if after == "the reset":
        iterator.reset()
    resumed = resumable(checkpoint=iterator.checkpoints()[0], auto_reset=True)
    rest(whole)
    assert_same([pair(batch) for batch in resumed] or [pair(batch) for batch in resumed], rest(whole))


def test_the_pipelines_of_a_process_share_one_set_in_memory(numbered_shards, monkeypatch):
    reads = []
    monkeypatch.setattr(pipeline_function, "read_pool", lambda *arguments: reads.append(1) or read_pool(*arguments))
    gc.collect()  # lets go of those of other tests
    kept = [iterate(numbered_shards, mode="resident", rank=rank, world_size=2) for rank in range(2)]
    assert len(reads) == 1
    make(numbered_shards, mode="resident", augment=Augment(pad=1))  # another frame
    assert len(reads) == 2
    kept.clear()
    gc.collect()
    assert len(rest(iterate(numbered_shards, mode="resident"))) == 5
    assert len(reads) == 3


def test_a_shard_that_is_removed_is_named_when_the_next_epoch_begins(numbered_shards, tmp_path):
    shards = shutil.copytree(numbered_shards, tmp_path / "shards")
    iterator = iterate(shards, mode="streaming")
    removed = sorted(shards.glob("*.tar"))[2]
    removed.unlink()
    with pytest.raises(ShardError, match=f"{removed.name}: changed or removed"):
        rest(iterator)


def test_a_file_that_has_changed_is_named_with_its_shard(file_shards, tmp_path):
    shards = shutil.copytree(file_shards, tmp_path / "shards")
    tar = sorted(shards.glob("*.tar"))[1]
    image, _ = parse_index(tar.with_suffix(".idx").read_text())[4]
    overwrite(tar, image.offset + image.size - 20, 6)
    options = {"mode": "streaming", "size": (9, 7), "mix": None}
    with pytest.raises(ShardError, match=f"{tar.name}: .*sha256"):
        iterate(shards, 12, **options, verify=True)
    pipeline = make(shards, 4, prefetch_queue_depth=1, **options)
    pipeline.build()
    pipeline.run()  # it is in a later window
    for _ in range(2):  # and not, the second time, as if the epoch had ended
        with pytest.raises(ShardError, match=f"{tar.name}: sample {image.name.partition('.')[0]}: changed since"):
            list(iter(pipeline.run, None))


def test_a_small_window_is_warned_of(numbered_shards):
    with pytest.warns(UserWarning, match="a DALI batch of 20 samples, .* hold fewer than 7 classes.* batch_size=70"):
        make(numbered_shards, 20, mode="streaming")
    for options in ({"mix": None}, {"mix": FDT(max_images=3)}):
        make(numbered_shards, 20, mode="streaming", **options)
