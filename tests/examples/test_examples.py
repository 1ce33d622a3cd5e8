"""The examples, run as users do, each in a process of its own, with the real libraries."""

import math
import re
import runpy
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fdt_pipeline import FDTLoader
from tests.peers import needs
from tests.processes import run_python

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "shared.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_each_is_shorter_than_60_lines_and_has_its_line_in_the_table(script):
    assert len(script.read_text().splitlines()) < 60
    (row,) = re.findall(rf"^\| \[`{script.name}`\].*$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert f"examples/{script.name} {'TRAIN VAL' if script.name == 'imagenet.py' else 'SHARDS'}`" in row


@dataclass(frozen=True)
class Example:
    """What an example printed: the loss of each step, and the accuracy, the last one, if there is one."""

    losses: dict[int, float]
    accuracy: float | None


def run_example(name, shards, folder, *arguments, ranks=None):
    """Run it in `folder`; no warning may be ours. shards: one folder or several."""
    folders = [shards] if isinstance(shards, Path) else shards
    output, errors = run_python(EXAMPLES / f"{name}.py", *folders, *arguments, ranks=ranks, folder=folder)
    assert not re.findall(r"^.*/(?:fdt_pipeline|examples)/.*Warning.*$", errors, re.MULTILINE)
    steps = [(int(step), float(loss)) for step, loss in re.findall(r"^step (\d+): loss (\S+)", output, re.MULTILINE)]
    losses = dict(steps)
    assert len(losses) == len(steps), "a step was printed twice"
    assert all(math.isfinite(loss) for loss in losses.values())
    found = re.findall(r"^accuracy (0\.\d+|1\.0+)$", output, re.MULTILINE)
    return Example(losses, float(found[-1]) if found else None)


def assert_same_run(whole, num_steps, *parts):
    """What these parts print, the later ones counting where they overlap, is what the whole run does."""
    assert list(whole.losses) == list(range(1, num_steps + 1))
    assert {step: loss for part in parts for step, loss in part.losses.items()} == whole.losses
    assert parts[-1].accuracy == whole.accuracy


@pytest.mark.process
def test_plain_goes_on_after_its_last_checkpoint_as_if_it_had_not_been_stopped(few_shards, tmp_path):
    def plain(checkpoint, *arguments):
        return run_example("plain", few_shards, tmp_path, "--epochs", 2, "--checkpoint", checkpoint, *arguments)

    stopped, resumed = plain("parts.pt", "--steps", 8), plain("parts.pt")
    assert list(stopped.losses) == list(range(1, 9))
    assert list(resumed.losses) == [7, 8, 9, 10]
    assert_same_run(plain("whole.pt"), 10, stopped, resumed)


@pytest.mark.process
@pytest.mark.dali
@pytest.mark.parametrize(("name", "num_steps"), [("dali_iterator", 10), ("own_dali_pipeline", 8)])
def test_those_of_dalis_own_train_for_two_epochs_or_as_many_steps_as_asked(few_shards, tmp_path, name, num_steps):
    whole = run_example(name, few_shards, tmp_path, "--epochs", 2)
    assert list(whole.losses) == list(range(1, num_steps + 1))
    assert list(run_example(name, few_shards, tmp_path, "--steps", 2).losses) == [1, 2]


EPOCHS = 21  # of 4 steps: the last step is one that is saved


@pytest.fixture(scope="module")
def ddp(few_shards, tmp_path_factory):
    """What ddp.py printed and left behind, run by 2 ranks from its beginning to its end."""
    folder = tmp_path_factory.mktemp("ddp")
    return run_example("ddp", few_shards, folder, "--epochs", EPOCHS, "--checkpoint", "run.pt", ranks=2), folder


def weights_of(folder):
    return torch.load(folder / "run.pt", weights_only=True)["model"]


@pytest.mark.cluster
def test_ddp_ends_the_same_stopped_or_not_and_by_fewer_ranks_within_rounding(few_shards, tmp_path, ddp):
    whole, folder = ddp
    assert list(whole.losses) == list(range(1, 4 * EPOCHS + 1))
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    options = ("--epochs", EPOCHS, "--checkpoint", "run.pt")
    assert max(run_example("ddp", few_shards, two, *options, "--steps", 77, ranks=2).losses) == 77
    shutil.copytree(two, one)
    for ranks, place in ((2, two), (1, one)):
        resumed = run_example("ddp", few_shards, place, *options, ranks=ranks)
        assert list(resumed.losses) == list(range(76, 85))
    torch.testing.assert_close(weights_of(two), weights_of(folder), rtol=0, atol=0)
    torch.testing.assert_close(weights_of(one), weights_of(folder), rtol=0, atol=1e-5)


def exact_accuracy(weights, shards):
    """All samples in one batch, by one process."""
    with FDTLoader(shards / "test", 100, train=False) as loader:
        ((images, labels),) = loader
    model = runpy.run_path(EXAMPLES / "shared.py")["small_network"](loader.shape[0], loader.num_classes)
    model.load_state_dict(weights)
    return (model(images).argmax(1) == labels).float().mean().item()


@pytest.mark.cluster
def test_ddp_evaluates_exactly_over_any_number_of_ranks(few_shards, ddp):
    over_two, folder = ddp
    over_one = run_example("ddp", few_shards, folder, "--epochs", EPOCHS, "--checkpoint", "run.pt", ranks=1)
    assert not over_one.losses
    exact = pytest.approx(exact_accuracy(weights_of(folder), few_shards), abs=1e-4)
    assert over_two.accuracy == exact
    assert over_one.accuracy == exact
    assert over_two.accuracy > 0.2  # something that a wrong count would change


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["lightning_fit", "accelerate_fit"])
def test_trainers_launched_by_torchrun_do_what_ddp_does(few_shards, tmp_path, ddp, name):
    needs(name.removesuffix("_fit"))
    found = run_example(name, few_shards, tmp_path, "--epochs", EPOCHS, "--checkpoint", tmp_path / "a.ckpt", ranks=2)
    expected, _ = ddp
    assert found.losses.keys() == expected.losses.keys()
    assert found.losses == pytest.approx(expected.losses, abs=1e-4)
    assert found.accuracy == expected.accuracy


@pytest.mark.peer
def test_lightnings_checkpoints_resume_in_mid_epoch_and_at_the_end_of_one(few_shards, tmp_path):
    needs("lightning")

    def fit(checkpoint, *arguments):
        return run_example("lightning_fit", few_shards, tmp_path, "--checkpoint", tmp_path / checkpoint, *arguments)

    stopped = fit("parts/run.ckpt", "--epochs", 4, "--steps", 5)
    middle = fit("parts/run.ckpt", "--epochs", 3)
    assert list(middle.losses) == list(range(4, 13))
    end = fit("parts/run.ckpt", "--epochs", 4)
    assert list(end.losses) == [13, 14, 15, 16]
    assert_same_run(fit("whole/run.ckpt", "--epochs", 4), 16, stopped, middle, end)


@pytest.mark.peer
def test_accelerates_saved_state_goes_on_in_mid_epoch(few_shards, tmp_path):
    needs("accelerate")

    def fit(*arguments):
        return run_example("accelerate_fit", few_shards, tmp_path, "--epochs", 2, "--checkpoint", *arguments)

    stopped, resumed = fit("parts", "--steps", 6), fit("parts")
    assert list(resumed.losses) == [7, 8]
    assert_same_run(fit("whole"), 8, stopped, resumed)


def accumulated_losses(shards, size):
    """The losses of each last batch before a step, of two epochs of 4 batches, in plain torch."""
    loader = FDTLoader(shards / "train", 64, last_batch="drop")
    torch.manual_seed(0)
    model = runpy.run_path(EXAMPLES / "shared.py")["small_network"](loader.shape[0], loader.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        batches = list(loader)
        for first in range(0, len(batches), size):
            group = batches[first : first + size]
            losses = [torch.nn.functional.cross_entropy(model(images), targets) for images, targets in group]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            yield losses[-1].item()


@pytest.mark.peer
def test_gradients_that_accelerate_accumulates_are_stepped_with_at_the_end_of_the_epoch(few_shards, tmp_path):
    """Steps of 3 and 1 of an epoch's 4 batches: its own accumulate() would make them of 3, 3 and 2."""
    needs("accelerate")

    def fit(*arguments):
        options = ("--epochs", 2, "--accumulate", 3, "--checkpoint")
        return run_example("accelerate_fit", few_shards, tmp_path, *options, *arguments)

    whole, stopped = fit("whole"), fit("parts", "--steps", 3)
    assert list(whole.losses) == [1, 2, 3, 4]
    assert [*whole.losses.values()] == pytest.approx([*accumulated_losses(few_shards, 3)], abs=1e-4)
    assert_same_run(whole, 4, stopped, fit("parts"))


@pytest.mark.peer
def test_timm_trains_and_evaluates(few_shards, tmp_path):
    needs("timm")
    found = run_example("timm_fit", few_shards, tmp_path, "--epochs", 2, "--steps", 6)
    assert list(found.losses) == [1, 2, 3, 4, 5, 6]
    assert found.accuracy is not None


@pytest.mark.compile
def test_the_compiled_step_has_the_losses_of_the_plain_one(few_shards, tmp_path):
    compiled = run_example("compiled", few_shards, tmp_path)
    plain = run_example("plain", few_shards, tmp_path, "--steps", 4, "--checkpoint", "plain.pt")
    assert list(compiled.losses) == [1, 2, 3, 4]
    assert compiled.losses == pytest.approx(plain.losses, abs=1e-4)


COLOURS = {
    "n01443537": (230, 40, 40),
    "n01629819": (40, 200, 60),
    "n01641577": (50, 60, 220),
}  # of its pictures
IN_SMALL = ("--model", "test_resnet", "--size", 32, "--max-images", 2, "--epochs", 8, "--whole-epochs", 2)


@pytest.fixture(scope="module")
def tiny_image_net(tmp_path_factory):
    """The official folders of Tiny-ImageNet with three of its classes, pictures of several sizes; as shards: (train,
    val) of 72 and 30."""
    root, rng = tmp_path_factory.mktemp("tiny-imagenet-200"), np.random.default_rng(0)

    def save(path, wnid):
        path.parent.mkdir(parents=True, exist_ok=True)
        h, w = rng.integers(40, 90, 2)
        picture = np.array(COLOURS[wnid]) + rng.normal(0, 30, (h, w, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, "JPEG")

    for wnid in COLOURS:
        for index in range(24):
            save(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", wnid)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    annotations = {f"val_{index}.JPEG": wnid for index, wnid in enumerate(10 * list(COLOURS))}
    for name, wnid in annotations.items():
        save(root / "val" / "images" / name, wnid)
        save(root / "test" / "images" / name.replace("val", "test"), wnid)
    rows = (f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in annotations.items())
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(COLOURS)))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    out = tmp_path_factory.mktemp("shards")
    run_python("-m", "fdt_pipeline", "shard", root, out, "--workers", 1, folder=EXAMPLES.parent)
    return out / "train", out / "test"


@pytest.mark.cluster
def test_imagenet_learns_tiny_image_nets_folders_and_goes_on_after_its_last_checkpoint(tiny_image_net, tmp_path):
    """72 pictures, 12 a step, so that it is stopped in an epoch of sums. Chance is a third."""
    needs("timm")

    def imagenet(checkpoint, *options, ranks=1, batch_size=12):
        common = (*IN_SMALL, "--batch-size", batch_size, "--checkpoint", checkpoint, *options)
        return run_example("imagenet", tiny_image_net, tmp_path, *common, ranks=ranks)

    stopped, resumed = imagenet("parts.pt", "--save-every", 4, "--steps", 9), imagenet("parts.pt")
    assert list(resumed.losses) == list(range(9, 49))
    whole = imagenet("whole.pt")
    assert_same_run(whole, 48, stopped, resumed)
    assert whole.accuracy > 0.6
    sums, whole_images = ([whole.losses[step] for step in steps] for steps in (range(25, 37), range(37, 49)))
    assert np.mean(sums) > 0.32 > np.mean(whole_images), "half of the sums have a target of entropy 0.64"
    two = imagenet("parts.pt", ranks=2, batch_size=6)
    assert list(two.losses) == list(range(9, 49)), "other ranks go on from the same checkpoint"
    assert two.accuracy > 0.6
