"""What the README says is what the code does: its example runs, its table is the committed one."""

import ast
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import open_source
from tests.conftest import SLOW
from tests.native_pools import load_arrays
from tests.numbered import LABELS, numbered_images
from tools.rounds import table
from train.__main__ import main
from train.demo import NAMES
from train.robust_accuracy import Robustness, format_table

pytestmark = pytest.mark.dali

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DEMO = ROOT / "train" / "results" / "demo"


def examples_of(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def names_of(page):
    """What the one example of a page defines, once it has run."""
    (code,) = examples_of(page)
    names = {}
    exec(code, names)
    return names


def outputs_of(pipeline):
    pipeline.build()
    return tuple(np.asarray(output.as_tensor()) for output in pipeline.run())


@pytest.fixture
def beside_shards(few_shards, tmp_path, monkeypatch):
    """The working directory is one in which the front page's first line has written its shards."""
    (tmp_path / "shards").symlink_to(few_shards)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside_shards")
def test_the_front_pages_photographs_are_trained_on(capsys):
    names = {}
    exec(examples_of("README.md")[0], names)
    assert names["images"].shape[1:] == (3, 224, 224)
    assert names["loss"].isfinite()
    assert "test images are right" in capsys.readouterr().out


@pytest.mark.usefixtures("beside_shards")
def test_the_front_pages_network_is_trained_with_tn_and_attacked(capsys):
    names = {}
    exec(examples_of("README.md")[1], names)
    assert names["loss"].isfinite()
    assert "| mine" in capsys.readouterr().out


def test_the_front_pages_command_makes_a_table_of_the_paper(few_shards, tmp_path, monkeypatch):
    """Of small images, one epoch and a short attack: all else is as it stands there."""
    (command,) = re.findall(r"^python -m train (reproduce .*)$", README, re.MULTILINE)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "cifar10").symlink_to(few_shards)
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command), "--epochs", "1", "--images", "20", "--steps", "1", "--eps", "0.01"]) == 0
    out = tmp_path / "runs" / "table1-medium"
    assert len(list((out / "records").iterdir())) == 5
    for column in ("plain", "OV", "FDT", "TN", "TN+FDT"):
        assert re.search(rf"^\| {re.escape(column)} +\| +paper", (out / "report.md").read_text(), re.MULTILINE)


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150


def test_the_table_is_the_committed_results():
    results = json.loads((DEMO / "results.json").read_text())
    rows = {name: Robustness.from_dict(model["robustness"]) for name, model in results["models"].items()}
    table = format_table(rows)
    assert list(rows) == list(NAMES.values())
    assert (DEMO / "table.md").read_text() == table
    assert "\n".join(table.splitlines()[:4]) in (ROOT / "train" / "README.md").read_text()


ROOMS = ("fdt_pipeline", "models", "train", "tools", "examples")
PAGES = [*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))]


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_tests_that_show_each_promise_of_the_loader_are_there():
    page = (ROOT / "fdt_pipeline" / "README.md").read_text()
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, name in named:
        code = (ROOT / "tests" / "fdt_pipeline" / file).read_text()
        assert f"def {name}(" in code or not name, f"{file}::{name}"


def tier_of(path, name):
    """ "slow" where the test or its file has a marker that says why, else "default"."""
    module = ast.parse(path.read_text())
    (test,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name)
    marks = [
        node for node in module.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    words = " ".join(map(ast.unparse, [*test.decorator_list, *(mark.value for mark in marks)]))
    return "slow" if set(re.findall(r"pytest\.mark\.(\w+)", words)) & SLOW else "default"


def test_each_promise_has_its_test_in_the_tier_that_is_said():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| .* \| `(\S+)::(\w+)` \| (\w+) .*\|$", page, re.MULTILINE)
    assert len(rows) > 30
    for file, name, tier in rows:
        assert tier_of(ROOT / "tests" / file, name) == tier, f"{file}::{name}"


NATIVE_PAGE = "fdt_pipeline/native/README.md"


def test_the_natives_table_is_the_committed_results():
    ratios = json.loads((ROOT / "tools" / "results" / "native-dali2.4.json").read_text())["ratios"]
    bounded = [row for row in ratios if row["ratio"].startswith("superposition :") and row["at_least"] is not None]
    assert table(bounded) in (ROOT / NATIVE_PAGE).read_text()


def test_the_pipeline_of_the_natives_page_runs():
    pool = load_arrays(numbered_images(), LABELS, 7, pad=4)
    images, targets = outputs_of(names_of(NATIVE_PAGE)["resident"](pool))
    assert images.shape == (256, 3, 6, 5)
    assert np.allclose(targets.sum(1), 1)


def test_the_windows_of_the_natives_page_run_on_photographs_of_any_kind(tmp_path):
    """A gray JPEG among those in color is stored as png."""
    for number, name in enumerate(["a/color.jpg", "a/gray.jpg", "b/color.png", "b/gray.png", "b/more.jpg"]):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        mode = "L" if "gray" in name else "RGB"
        Image.new(mode, (20 + number, 30), 200).save(tmp_path / "photos" / name)
    manifest = write_shards(open_source(tmp_path / "photos"), tmp_path / "shards", "keep")
    assert manifest.samples_per_extension == {"jpg": 2, "png": 3}
    streaming = names_of(NATIVE_PAGE)["streaming"]
    images, targets = outputs_of(streaming(tmp_path / "shards", len(manifest.classes), batch_size=10))
    assert images.shape == (10, 3, 224, 224)
    assert np.allclose(targets.sum(1), 1)


@pytest.mark.usefixtures("beside_shards")
def test_the_pipeline_of_the_packages_page_runs():
    names = names_of("fdt_pipeline/README.md")
    assert names["images"].shape == (100, 1, 28, 28)
    assert names["targets"].shape == (100, 10)
