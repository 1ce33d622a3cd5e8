"""`python -m tools bench` from its options to its files, with workers that need no time."""

import json

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import load_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tests import bench_results
from tests.numbered import MixedSizes, numbered_images
from tools.__main__ import main
from tools.bench.checks import check
from tools.bench.command import REPEATS
from tools.bench.contenders import ENTRIES, find_entry
from tools.bench.plot import draw
from tools.bench.race import Bench, Options
from tools.bench.resources import Noise
from tools.bench.subsets import relabelled
from tools.bench.task import Entry
from tools.bench.worker import WorkerHandle

MODULE = "tests.bench_contenders"
RATES = {"whole": 1000.0, "mixed": 500.0}


class QuickWorker:
    """A worker whose rate depends on its name alone; checks are real."""

    def __init__(self, spec, timeout):
        self.spec = spec
        self.rate = RATES.get(spec.contender.rpartition(":")[2], 1.0) / len(spec.task.manifest.classes)
        self.rng = np.random.default_rng(0)

    def start(self, seconds):
        return bench_results.start()

    def check(self, sets):
        return check(find_entry(self.spec.contender), self.spec.task, sets)

    def turn(self, seconds):
        return bench_results.turn(self.rate * float(np.exp(0.01 * self.rng.normal())))

    def close(self):
        pass


@pytest.fixture
def quick(monkeypatch):
    """One that hangs has a real worker."""

    def new_worker(spec, timeout):
        return (WorkerHandle if spec.contender.endswith("hangs") else QuickWorker)(spec, timeout)

    monkeypatch.setattr("tools.bench.race.Bench", lambda options: Bench(options, new_worker))
    monkeypatch.setattr("tools.bench.resources.noise_works", lambda: {"arithmetic": lambda: None})


@pytest.fixture
def shards(few_shards):
    return few_shards / "train"


def bench(shards, tmp_path, *options, contenders=("whole", "mixed")):
    own = [argument for name in contenders for argument in ("--contender", f"{MODULE}:{name}")]
    common = ["--batch-size", 32, "--workers", 1, "--work", tmp_path / "work"]
    return main(["bench", str(shards), *map(str, [*common, *options, *own])])


def test_a_table_json_and_a_plot_come_out(shards, tmp_path, quick, capsys):
    json_path, plot = tmp_path / "out" / "bench.json", tmp_path / "out" / "bench.png"
    assert bench(shards, tmp_path, "--json", json_path, "--plot", plot) == 0
    printed = capsys.readouterr().out
    assert "fashion-mnist" not in printed  # the few are arrays
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith(MODULE)]
    assert rows == [f"{MODULE}:whole", f"{MODULE}:mixed"]
    results = json.loads(json_path.read_text())
    assert results["data"]["samples"] == 300
    assert results["machine"]["cores"] >= 1
    assert results["options"]["repeats"] == REPEATS
    assert len(results["contenders"][0]["turns"]) == REPEATS
    assert results["contenders"][1]["images_per_output"] == 5.5
    assert len(results["noise"]["arithmetic"]["seconds"]) == REPEATS + 1
    assert results["versions"]["numpy"] == np.__version__
    assert results["command"][:5] == ["python", "-m", "tools", "bench", str(shards)]
    assert results["command"][-2:] == ["--contender", f"{MODULE}:mixed"]
    assert str(tmp_path) not in json.dumps({key: results[key] for key in results if key != "command"})
    assert plot.stat().st_size > 1000


def test_who_cheats_or_hangs_is_dropped_by_name_and_makes_the_command_fail(shards, tmp_path, quick, capsys):
    out, contenders = tmp_path / "bench.json", ("hangs", "whole", "half_of_the_epoch", "not_installed")
    assert bench(shards, tmp_path, "--timeout", 0.1, "--json", out, contenders=contenders) == 1
    printed = capsys.readouterr().out
    reason = "it gave no batch for 0.1 s and was stopped; --timeout S waits longer"
    assert f"{MODULE}:hangs: failed: {reason}" in printed
    assert f"{MODULE}:half_of_the_epoch: refused: epoch 0 has 150 images, expected" in printed
    assert f"{MODULE}:not_installed: not installed: pip install nothing-like-it" in printed
    hangs, whole, half, missing = found = json.loads(out.read_text())["contenders"]
    assert [one["status"] for one in found] == ["failed", "measured", "refused", "not installed"]
    assert hangs["reason"].startswith(reason)
    assert [len(one["turns"]) for one in (whole, half, missing)] == [REPEATS, 0, 0]
    assert "summary" not in half


def test_contenders_for_gpus_are_left_out_on_a_cpu(shards, tmp_path, quick, monkeypatch, capsys):
    entry = Entry("gpu alone", "none", lambda task: None, needs_gpu=True)
    monkeypatch.setattr("tools.bench.contenders.ENTRIES", (entry,))
    assert bench(shards, tmp_path, "--contenders", "gpu alone") == 0
    assert "gpu alone: left out: it runs on GPUs alone" in capsys.readouterr().out
    assert bench(shards, tmp_path, contenders=("whole", "not_installed")) == 0, "nor is a missing library a failure"


def test_sweeps_and_training_are_raced_with_what_was_measured_and_each_sweep_is_drawn(shards, tmp_path, quick):
    """On other classes, in other batches; a model alone and with each loader."""
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ("--classes", 4, 8, "--batch-sizes", 16, "--model", "small", "--json", out)
    assert bench(shards, tmp_path, *options) == 0
    found = json.loads(out.read_text())
    rates = {c: one[0]["summary"]["images_per_second"]["median"] for c, one in found["sweeps"]["classes"].items()}
    assert rates["4"] / rates["8"] == pytest.approx(2, rel=0.1)
    assert list(found["sweeps"]["batch_sizes"]) == ["16"]
    names = [one["name"] for one in found["training"]]
    assert names == ["small, the same batch again", f"small, {MODULE}:whole", f"small, {MODULE}:mixed"]
    sizes = []
    for results in (found, found | {"sweeps": {}}):
        draw(results, plot)
        with Image.open(plot) as image:
            assert np.asarray(image.convert("L")).std() > 10
            sizes.append(image.size)
    assert sizes[0][1] > sizes[1][1] + 600


def test_without_shards_there_is_nothing_to_race_on_but_a_list_that_names_every_contender(capsys):
    assert main(["bench"]) == 2
    assert "expected SHARDS" in capsys.readouterr().err
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ENTRIES)
    assert all(line.startswith(entry.name) and entry.note in line for line, entry in zip(lines, ENTRIES, strict=True))


def test_one_real_race_in_processes(shards, tmp_path, capsys):
    assert bench(shards, tmp_path, "--repeats", 2, "--seconds", 0.05, "--widest", 100, contenders=("whole",)) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{MODULE}:whole "))
    assert float(line.split()[1].replace(",", "")) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", 1], "--repeats must be at least 2"),
        (["--batch-size", 0], "--batch-size must be at least 1"),
        (["--workers", 0], "--workers must be at least 1"),
        (["--classes", 0], "--classes must be at least 1"),
        (["--seconds", 0], "--seconds must be above 0, got 0.0"),
        (["--widest", 0], "--widest must be above 0, got 0.0"),
        (["--timeout", 0], "--timeout must be above 0, got 0.0"),
        (["--step", 0], "--step must be above 0, got 0.0"),
        (["--crop", 0], "--crop must be at least 1, got 0"),
        (["--crop", 8, "--size", 8, 8], "--crop and --size exclude each other"),
        (["--crop", 8], "holds arrays: --crop is for image files"),
        (["--step", 1, "--model", "small"], "--step and --model exclude each other"),
        (["--classes", 301], "--classes 301 needs as many images, got 300"),
        (["--mixing", "mixup"], "no contender is left"),
        (["--contenders", "nobody"], "unknown contender 'nobody'"),
        (["--contender", "no_such_module:loader"], "no_such_module"),
        (["--contender", f"{MODULE}:nothing"], "no attribute 'nothing'"),
        (["--contender", "tests.numbered:NUM_SAMPLES"], "expected an Entry, or a function"),
    ],
)
def test_wrong_options_are_an_error_of_one_line(shards, tmp_path, quick, capsys, options, message):
    assert bench(shards, tmp_path, *options) == 2
    [error] = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert message in error


def test_mixed_sizes_need_a_size_or_a_crop(tmp_path, quick, capsys):
    write_shards(MixedSizes(), tmp_path / "mixed", "png")
    assert bench(tmp_path / "mixed", tmp_path) == 2
    assert "pass --size H W, or --crop N" in capsys.readouterr().err
    resized, cropped = (
        Options(tmp_path / "mixed", (), 4, 1, 6, 1.0, tmp_path, **how).task() for how in ({"size": (8, 8)}, {"crop": 8})
    )
    assert resized.shape == cropped.shape == (3, 8, 8)
    assert (resized.crop, cropped.crop, cropped.pad) == (False, True, 0)


@pytest.mark.parametrize("encoding", ["raw", "jpg"])
def test_relabelled_images_are_the_same_with_other_classes(tmp_path, encoding):
    """Encoded ones byte by byte, so that nothing is lost on the way."""
    write_shards(ArraySource(numbered_images(30), np.arange(30) % 3), tmp_path / "shards", encoding)
    folder = relabelled(tmp_path / "shards", 5, tmp_path)
    assert read_manifest(folder).samples_per_class == (6,) * 5
    images, labels, _ = load_shards(folder)
    before = [image.tobytes() for image in load_shards(tmp_path / "shards")[0]]
    assert sorted(image.tobytes() for image in images) == sorted(before)
    assert [before.index(image.tobytes()) % 5 for image in images] == labels.tolist()
    assert relabelled(tmp_path / "shards", 5, tmp_path) == folder


def test_the_noise_of_a_machine_is_how_much_longer_the_same_work_took(quick):
    times = iter([0, 1, 10, 12, 20, 21, 30, 31])
    noise = Noise(clock=lambda: float(next(times)))
    for _ in range(4):
        noise.measure()
    assert noise.seconds["arithmetic"] == [1, 2, 1, 1]
    assert noise.to_dict()["arithmetic"]["spread"] == 1
