"""Mixes of every kind through a loader: what their outputs are made of, and mixes that are changed or cannot be had."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
from scipy import stats

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, MixUp, OneOf, Uniform
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import MODES, assert_same, joined, of_partners, ranks

pytestmark = pytest.mark.dali

EACH = 60  # images, each of a class of its own
MIXES = {
    "fdt": FDT(max_images=3),
    "mixup": MixUp(0.8),
    "cutmix": CutMix(1.0, anchor="random"),
    "one of": OneOf([(MixUp(0.4), 0.4), (CutMix(1.0), 0.4), (FDT(unique_classes=False), 0.1), (None, 0.1)]),
}
PAIRS = OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.5})


@pytest.fixture(params=["native", "torch"], autouse=True)
def engine(request, monkeypatch):
    """Every test runs with both."""
    monkeypatch.setitem(FDTLoader.__init__.__kwdefaults__, "engine", request.param)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Folder of 90 images of 3 classes, in red, green and blue."""
    folder, labels = tmp_path_factory.mktemp("colors") / "shards", np.arange(90) % 3
    images = np.zeros((90, 9, 8, 3), np.uint8)
    images[np.arange(90), ..., labels] = 255
    write_shards(ArraySource(images, labels), folder)
    return folder


@pytest.fixture(scope="module")
def each_its_own(tmp_path_factory):
    """Folder of 60 images, each of a class of its own, so that targets say what outputs are made of."""
    folder = tmp_path_factory.mktemp("each") / "shards"
    write_shards(ArraySource(np.zeros((EACH, 4, 4, 1), np.uint8), np.arange(EACH)), folder)
    return folder


@pytest.mark.parametrize("partners", ["set", "ring", "batch"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_the_colors_of_an_output_are_its_target(colors, mix, partners):
    """Of 90 images of 3 classes in batches of 32, so that classes repeat."""
    mix = of_partners(mix, partners)
    images, targets = joined(FDTLoader(colors, 32, mix=mix, augment=Augment(pad=0), mean=0, std=255))
    assert (images.mean((2, 3)) - targets).abs().max() < 1e-6
    assert ((targets > 0).sum(1) > 1).sum() > 30


@pytest.mark.parametrize("mix", [MixUp(0.8), CutMix(1.0), PAIRS, FDT(max_images=4, anchor="epoch")])
def test_outputs_that_are_mixed_within_their_batch_are_of_its_images_alone(each_its_own, mix):
    """Each image of a batch leads one of its outputs, so that it is of as many classes as it has outputs. With a ring
    it would be of more."""
    for partners, is_within in (("batch", True), ("ring", False)):
        found = []
        for _, targets in FDTLoader(each_its_own, 12, mix=of_partners(mix, partners)):
            found.append(int((targets.sum(0) > 0).sum()))
        assert (found == [12] * 5) == is_within


@pytest.mark.filterwarnings("ignore:.* (lacks|fewer than .*) classes:UserWarning")
@pytest.mark.parametrize("batch_size", [2, 12, 20])
def test_sums_within_a_batch_are_of_its_classes_also_where_the_set_has_more(each_its_own, batch_size):
    """Up to 16 batches are made together."""
    for _, targets in FDTLoader(each_its_own, batch_size, mix=FDT(anchor="epoch", partners="batch")):
        assert int((targets.sum(0) > 0).sum()) == batch_size


@pytest.mark.parametrize(
    "mix",
    [MixUp(1.0, partners="set"), FDT(min_images=2, max_images=2, anchor="epoch", unique_classes=False, partners="set")],
)
def test_partners_of_the_set_are_uniform_over_all_of_it(each_its_own, mix):
    """Of 12,000 outputs, in batches of 20: the leader itself is among them, which leaves one class."""
    found = np.zeros(EACH, np.int64)
    with FDTLoader(each_its_own, 20, mix=mix, prefetch=0) as loader:
        for _ in range(200):
            targets = joined(loader)[1].numpy()
            found += (targets > 0).sum(0) + (targets == 1).sum(0) - 1  # each has led once
    assert found.sum() == 200 * EACH
    assert stats.chisquare(found).pvalue > 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_takes_no_mix(numbered_shards, mode):
    loader = FDTLoader(numbered_shards, 32, train=False, mode=mode)
    with pytest.raises(ValueError, match="train=False yields every sample whole and unchanged, got mix=MixUp"):
        loader.mix = MixUp(0.2)
    assert loader.mix is None


@pytest.mark.parametrize(
    ("options", "mix", "match"),
    [
        ({"mode": "resident"}, MixUp(0.2, partners="batch"), 'partners="batch" needs streaming'),
        ({"mode": "streaming"}, MixUp(0.2, partners="set"), 'partners="set" needs the set in memory'),
        (
            {"mode": "streaming", "batch_size": 1},
            MixUp(0.2, partners="batch"),
            "but a batch has one",
        ),
        ({}, FDT(max_images=8), "max_images 8 is over the number of classes"),
        ({}, MixUp, "an FDT, MixUp, CutMix.* None, got the class MixUp"),
    ],
)
def test_a_mix_that_cannot_be_had_is_refused_when_it_is_set_or_its_epoch_begins(numbered_shards, options, mix, match):
    """And the loader keeps the one it has."""
    options = {"batch_size": 46, **options}
    loader = FDTLoader(numbered_shards, mix=MixUp(0.4), **options)
    with pytest.raises(ValueError, match=match):
        loader.mix = mix
    assert loader.mix == MixUp(0.4)
    by_function = FDTLoader(numbered_shards, mix=lambda epoch: mix if epoch else MixUp(0.4), **options)
    assert_same(list(by_function), list(loader))
    with pytest.raises(ValueError, match=match):
        list(by_function)


@dataclass(frozen=True)
class Table:
    """A series that holds an array, so that two of them cannot be compared."""

    rows: np.ndarray

    def weights(self, k):
        return self.rows[k - 1, :k]


def table():
    return Table(np.tril(1 / np.arange(1.0, 8)[:, None].repeat(7, 1)))


@pytest.mark.parametrize("mode", MODES)
def test_a_series_that_holds_an_array_goes_on_from_epoch_to_epoch(numbered_shards, mode):
    """Given by a function of the epoch, and set between epochs."""
    options = {"mode": mode, "seed": 3}
    plain = FDTLoader(numbered_shards, 46, mix=FDT(series=Uniform()), **options)
    by_function = FDTLoader(numbered_shards, 46, mix=lambda epoch: FDT(series=table()), **options)
    is_set = FDTLoader(numbered_shards, 46, mix=FDT(series=table()), **options)
    for _ in range(3):
        expected = list(plain)
        assert_same(list(by_function), expected)
        assert_same(list(is_set), expected)
        is_set.mix = FDT(series=table())


@pytest.mark.filterwarnings("ignore:the .* lacks classes:UserWarning")
def test_a_series_without_terms_for_too_many_classes_is_refused_when_it_is_set(each_its_own, monkeypatch):
    """The torch engine takes it. The ring, or the batch, may hold few enough of them."""
    for module in ("fdt_pipeline.native.arguments", "fdt_pipeline.loader.mixes"):
        monkeypatch.setattr(f"{module}.MAX_TABLE_IMAGES", 20)

    class OfMany:
        def weights(self, k):
            return np.full(k, 1 / k)

    few, many = FDT(series=OfMany(), max_images=20), FDT(series=OfMany())
    for mode, options in (("resident", {}), ("streaming", {}), ("streaming", {"ring": 20})):
        loader = FDTLoader(each_its_own, 12, mode=mode, mix=MixUp(0.4), **options)
        loader.mix = few
        if loader.engine == "native" and not options:
            with pytest.raises(ValueError, match=r"has no terms.* for up to 20 images, got 60: set max_images=20"):
                loader.mix = many
            assert loader.mix is few
        else:
            loader.mix = many
        assert len(list(loader)) == 5
        if mode == "streaming":
            loader.mix = of_partners(many, "batch")
            assert len(list(loader)) == 5


def test_a_ring_is_named_where_the_mix_has_one(numbered_shards):
    loader = FDTLoader(numbered_shards, 46, mode="streaming", mix=MixUp(0.2))
    for mix, ring in (
        (MixUp(0.2, partners="batch"), None),
        (PAIRS, 1024),
        (None, None),
        (lambda epoch: MixUp(0.2, partners="batch"), 1024),
    ):
        loader.mix = mix
        assert loader.ring == ring


def test_a_state_whose_batches_would_be_of_one_image_on_more_ranks_is_refused(numbered_shards):
    """115 batches of 2 on one rank, and of 1 on two; but not where they are mixed with more than the batch."""
    for partners, is_refused in (("batch", True), ("ring", False)):
        [loader] = ranks(numbered_shards, 2, 1, mode="streaming", mix=None, ring=2)
        loader.mix = MixUp(0.2, partners=partners)
        list(islice(loader, 3))
        other, _ = ranks(numbered_shards, 2, 2, mode="streaming", mix=None, ring=2)
        if is_refused:
            with pytest.raises(ValueError, match="mixed within their batch, but a batch has one"):
                other.load_state_dict(loader.state_dict())
            assert other.mix is None
        else:
            other.load_state_dict(loader.state_dict())
            assert len(list(other)) == 112


@pytest.mark.parametrize("switched", [MixUp(0.4), None, FDT(max_images=2)])
def test_partners_of_the_batch_and_of_the_ring_may_follow_each_other(numbered_shards, switched):
    """A loader that was made for either gives the same."""
    batch = MixUp(0.4, partners="batch")
    one, other = (FDTLoader(numbered_shards, 32, mode="streaming", mix=mix) for mix in (batch, switched))
    list(one)
    list(other)
    for mix in (switched, batch):
        one.mix = other.mix = mix
        assert_same(list(one), list(other))
