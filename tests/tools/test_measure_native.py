"""The benchmark of the native operators, at a size at which its figures mean nothing and its JSON is whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource

pytest.importorskip("torchvision")
from tools.measure_native import GROUPS, THREADS, Ratio, SuperposedDataset, compare, table

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
# Without a build, which has tests of its own, and without spawning the DataLoaders' workers, which takes 20 seconds.
MEASURED = [name for name in GROUPS if name not in ("first-use", "dataloader")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """(the JSON, what was printed) of MEASURED."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("measured")
    for num_classes in (10, 100):
        write_noise(folder / str(num_classes), num_classes)
    out = folder / "out" / "native.json"
    command = [sys.executable, "-m", "tools.measure_native", folder / "10", folder / "100", out]
    size = ["--repeats", 2, "--seconds", 0.01, "--batch-size", 16, "--jpegs", 64]
    chosen = ["--only", *MEASURED]
    ran = subprocess.run([*map(str, [*command, *size, *chosen])], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(out.read_text()), ran.stdout


def write_noise(folder: Path, num_classes: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), np.uint8)
    write_shards(ArraySource(images, np.arange(600) % num_classes), folder, samples_per_shard=300)


def test_every_group_has_a_figure_a_round(results):
    groups = results[0]["groups"]
    assert list(groups) == MEASURED
    for group in groups.values():
        for figure in group["figures"].values():
            assert len(figure["values"]) == 2
            assert 0 < figure["min"] <= figure["median"] <= figure["max"]


def test_what_was_measured_where_is_told(results):
    told = results[0]
    assert told["versions"]["torch"] == torch.__version__
    assert "commit" in told["versions"]  # None outside of a git checkout
    assert told["hardware"]["cpu"]
    assert [data["classes"] for data in told["data"]] == [10, 100]
    assert told["options"]["dali, both sides"]["num_threads"] == max(THREADS)
    assert told["options"]["repeats"] == 2


def test_table_has_a_row_for_every_ratio(results):
    told, printed = results
    assert printed.splitlines() == table(told["ratios"]).splitlines()
    assert len(printed.splitlines()) == 2 + len(told["ratios"])


def test_ratio_is_taken_round_by_round_against_the_fastest_other():
    """The median of ratios is not the ratio of medians: the second round ran at a third of the clock."""
    figures = {"ours": [30.0, 10.0, 33.0], "slow": [1.0, 9.0, 1.0], "fast": [15.0, 4.0, 11.0]}
    told = compare(Ratio("r", "ours", ["slow", "fast"], at_least=2.4, stretch=3), figures)
    assert told["under"] == "fast"
    assert told["values"] == [2.0, 2.5, 3.0]
    assert (told["min"], told["median"], told["max"]) == (2.0, 2.5, 3.0)
    assert (told["holds"], told["reaches_stretch"]) == (True, False)


@pytest.mark.parametrize("way", ["lean", "chain", "PIL"])
def test_the_data_loader_does_fdt(way):
    """Every class has a grey of its own, which no flip and no shift takes away from the middle of the image."""
    grey = np.arange(10, 210, 20)
    images = np.broadcast_to(grey[:, None, None, None], (10, 32, 32, 3)).astype(np.uint8)
    dataset = SuperposedDataset(images, np.arange(10), 10, way)
    numbers = set()
    for _ in range(40):
        image, target = dataset[0]
        assert float(target.sum()) == pytest.approx(1)
        expected = (float(target @ torch.from_numpy(grey).float()) - np.array([122, 117, 104])) / 256
        np.testing.assert_allclose(image[:, 16, 16].numpy(), expected, atol=1e-5)
        numbers.add(int((target > 0).sum()))
    assert len(numbers) > 5  # 40 draws of {1..10} have 5 values or less in 1 of 4e9 runs
