"""A recipe on several ranks takes the steps that it takes in one process.

Batch normalization is in training mode throughout, synchronized over the ranks, so whole steps are compared. They are
in float64: rounding to float32 alone changes the gradients of a ResNet-34 by up to 4 %, as it moves values past a kink.
"""

import pytest
import torch
from torch import nn

from tests import train_on_ranks
from tests.processes import run_python
from tests.train.made_up import log_of
from train import ddp
from train.ddp import synchronize_batch_norm
from train.files import BEST, CHECKPOINT, CONFIG, LOG, RESULTS, read_checkpoint, read_json
from train.recipes import make_recipe
from train.saved_run import open_run
from train.setup import evaluate, make_loader

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def train_on_two_ranks(shards, out, dtype, *options):
    """`train_on_ranks.train` under torchrun, with warnings as errors."""
    kept, strict = out.with_suffix(".gradients"), "error::FutureWarning,error::UserWarning"
    arguments = (shards, out, kept, str(dtype).removeprefix("torch."), *options)
    run_python(train_on_ranks.__file__, *arguments, ranks=2, PYTHONWARNINGS=strict)
    return torch.load(kept, weights_only=True)


def largest_difference(a, b):
    """Of two dictionaries of tensors: the largest norm of a difference, as a share of the tensor's norm."""
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).norm() / a[key].norm().clamp(min=1e-6)) for key in a)


@pytest.mark.cluster
def test_gradients_of_resnet34_on_two_ranks_are_those_of_one_process(few_shards, tmp_path):
    options = (torch.float64, "resnet34_tn_fdt", 4, 1, 4)  # breaks off before the fourth step
    alone = train_on_ranks.train(few_shards, tmp_path / "alone", *options)
    shared = train_on_two_ranks(few_shards, tmp_path / "shared", *options)
    assert len(alone) == len(shared) == 3
    for a, b in zip(alone, shared, strict=True):
        assert largest_difference(a, b) < 1e-8


@pytest.mark.cluster
def test_a_run_goes_on_with_another_number_of_ranks(few_shards, tmp_path):
    options = (torch.float64, "small_tn_fdt", 50, 4)
    whole = train_on_ranks.train(few_shards, tmp_path / "whole", *options)
    out = tmp_path / "shared"
    gradients = train_on_two_ranks(few_shards, out, *options, 15)
    assert read_checkpoint(out / CHECKPOINT)["progress"]["epoch"] == 2
    rest = train_on_ranks.train(few_shards, out, *options)
    assert (len(whole), len(gradients), len(rest)) == (24, 14, 12)
    for a, b in zip(whole, gradients[:12] + rest, strict=True):
        assert largest_difference(a, b) < 1e-6
    ends = (read_checkpoint(folder / CHECKPOINT)["model"] for folder in (tmp_path / "whole", out))
    torch.testing.assert_close(*map(dict, ends), rtol=1e-6, atol=1e-6)
    logs = (log_of(folder, "train", "test") for folder in (tmp_path / "whole", out))
    for a, b in zip(*logs, strict=True):
        assert (a["kind"], a["step"], a.get("accuracy")) == (b["kind"], b["step"], b.get("accuracy"))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


@pytest.mark.cluster
def test_evaluation_on_two_ranks_counts_every_sample_once(few_shards, tmp_path):
    """100 samples in one batch of 200 a rank, of which three quarters only fill it up."""
    out = tmp_path / "run"
    train_on_two_ranks(few_shards, out, torch.float32, "small_plain", 100, 1)
    saved = open_run(out, CPU)
    accuracy, loss = evaluate(
        saved.model, make_loader(make_recipe("small_plain"), few_shards / "test", CPU, train=False)
    )
    [logged] = log_of(out, "test")
    assert logged["accuracy"] == accuracy
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert {path.name for path in out.iterdir()} == {CHECKPOINT, BEST, CONFIG, RESULTS, LOG, "tensorboard"}
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert read_json(out / RESULTS)["ranks"] == 2


@pytest.fixture
def ranks(monkeypatch):
    """-> function that makes this process a rank of torchrun's."""

    def become(rank, world_size):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
            monkeypatch.setenv(name, str(value))

    return become


def test_a_batch_that_the_ranks_cannot_share_is_refused(ranks):
    assert ddp.share_of_batch(make_recipe("small_plain")) == 100
    ranks(0, 3)
    assert ddp.share_of_batch(make_recipe("small_plain", batch_size=99)) == 33
    with pytest.raises(ValueError, match="a batch of 100 cannot be shared out evenly among 3 ranks"):
        ddp.share_of_batch(make_recipe("small_plain"))


@pytest.mark.parametrize(("precise", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_evaluation_has_the_precision_asked_for_and_counts_by_weight(precise, dtype, monkeypatch):
    class Loader(list):
        device, num_samples = CPU, 3

    images, labels, weights = torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 1, 1, 0])
    monkeypatch.setattr("train.precision.amp_dtype", lambda device, mixed: torch.bfloat16)
    seen, model = [], nn.Linear(2, 3)
    model.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    accuracy, _ = evaluate(model, Loader([(images, labels, weights)]), precise)
    assert seen == [dtype]
    if precise:
        assert accuracy == pytest.approx(float((model(images[:3]).argmax(1) == 0).double().mean()))


FIT = ["fit", "--recipe", "small_plain", "--data", "x", "--out", "x", "--compile"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (FIT, "--compile is for one process: leave it out under torchrun"),
        *(
            (verb.split(), "torchrun is for `fit`, run all else without it")
            for verb in ("demo", "robustness run", "checks run", "export run --out x", "sweep --out x")
        ),
    ],
)
def test_torchrun_is_for_what_trains(ranks, command, message, refused):
    ranks(1, 2)
    assert message in refused(*command)


def test_more_ranks_than_gpus_are_refused(ranks, monkeypatch):
    ranks(3, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = r"rank 3 has no GPU, there are 2: .*--device cpu"
    with pytest.raises(ValueError, match=message), ddp.process_group(torch.device("cuda")):
        pass


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_synchronized_batch_norm_of_one_rank_is_torchs(offset):
    torch.manual_seed(0)
    plain, shared = (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()) for _ in range(2))
    synchronize_batch_norm(shared, CPU)
    for _ in range(3):
        x = (torch.randn(4, 3, 5, 5) + offset).to(memory_format=torch.channels_last)
        weight = torch.randn(x.shape)
        gradients = []
        for model in (plain, shared):
            leaf = x.clone().requires_grad_()
            (model(leaf) * weight).sum().backward()
            gradients.append({"x": leaf.grad, **{name: value.grad for name, value in model.named_parameters()}})
        assert largest_difference(*gradients) < 1e-4
    torch.testing.assert_close(dict(shared.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(2), nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, momentum=None)]
)
def test_batch_norm_that_would_not_be_synchronized_is_refused(layer):
    with pytest.raises(ValueError, match=r"1 is a BatchNorm.*: only an affine BatchNorm2d"):
        synchronize_batch_norm(nn.Sequential(nn.ReLU(), layer), CPU)
