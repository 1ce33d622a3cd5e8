"""Which engine runs: the native one wherever it can be had, torch on a CPU without it, and an error on a GPU."""

import pytest
import torch

from fdt_pipeline import FDT, FDTLoader, fdt_pipeline
from fdt_pipeline.loader.engines import choose_engine
from fdt_pipeline.native import NativeUnavailable

pytestmark = pytest.mark.dali

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MANY = r"up to 65,536 classes, this set has 65,537: FDTLoader\(engine=\"torch\"\), on the CPU"


@pytest.fixture
def no_compiler(monkeypatch):
    """The native operators cannot be had."""

    def fail():
        raise NativeUnavailable("g++ is missing: install it")

    monkeypatch.setattr("fdt_pipeline.loader.engines.load", fail)
    monkeypatch.setattr("fdt_pipeline.loader.pipeline.load", fail)


@pytest.mark.usefixtures("no_compiler")
def test_auto_falls_back_to_torch_on_a_cpu_and_says_why():
    with pytest.warns(UserWarning, match=r"the torch engine is used, which is slower: g\+\+ is missing"):
        assert choose_engine("auto", CPU, 10) == "torch"
    assert choose_engine("torch", CPU, 10) == "torch"


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("asked", "device"), [("native", CPU), ("native", CUDA), ("auto", CUDA)])
def test_without_the_native_engine_it_is_an_error_where_nothing_else_will_do(asked, device):
    with pytest.raises(NativeUnavailable, match="install it"):
        choose_engine(asked, device, 10)


@pytest.mark.parametrize(("asked", "device"), [("native", CPU), ("auto", CUDA)])
def test_more_classes_than_the_native_engine_takes_are_an_error_there_too(asked, device):
    with pytest.raises(ValueError, match=MANY):
        choose_engine(asked, device, 65_537)


def test_more_classes_than_the_native_engine_takes_are_left_to_torch(many_classes):
    with pytest.warns(UserWarning, match=rf"torch engine is used.* {MANY}"):
        loader = FDTLoader(many_classes, 10, mix=FDT(max_images=2), augment=None)
    images, targets = next(iter(loader))
    assert loader.engine == "torch"
    assert (images.shape, targets.shape) == ((10, 3, 6, 5), (10, 65_537))


def test_a_pipeline_has_no_other_engine(many_classes, numbered_shards, request):
    with pytest.raises(ValueError, match=MANY):
        fdt_pipeline(many_classes, batch_size=10, num_threads=1, device_id=None)
    request.getfixturevalue("no_compiler")
    with pytest.raises(NativeUnavailable, match=r"fdt_pipeline needs the native .*: g\+\+ is missing"):
        fdt_pipeline(numbered_shards, batch_size=46, num_threads=1, device_id=None)


@pytest.mark.parametrize("engine", ["auto", "native", "torch", "fdt_pipeline"])
def test_an_instruction_set_that_is_not_here_is_an_error_when_a_loader_or_pipeline_is_made(
    numbered_shards, monkeypatch, engine
):
    monkeypatch.setenv("FDT_PIPELINE_ISA", "nonsense")
    if engine == "fdt_pipeline":
        make, options = fdt_pipeline, {"num_threads": 1, "device_id": None}
    else:
        make, options = FDTLoader, {"engine": engine}
    with pytest.raises(ValueError, match=r"FDT_PIPELINE_ISA must be one of .* got 'nonsense': unset it"):
        make(numbered_shards, batch_size=46, **options)
