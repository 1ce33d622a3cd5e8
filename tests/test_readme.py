"""What the README says is what the code does: its example runs, its table is the committed one."""

import json
import re
from pathlib import Path

import pytest

from train.demo import NAMES
from train.robust_accuracy import Robustness
from train.robustness import format_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DEMO = ROOT / "train" / "results" / "demo"


def test_the_trainer_example_runs(few_shards, tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "shards").symlink_to(few_shards)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["images"].shape[1:] == (1, 28, 28)
    assert names["targets"].shape[1] == 10
    assert names["loss"].isfinite()


def test_the_table_is_the_committed_results():
    results = json.loads((DEMO / "results.json").read_text())
    rows = {name: Robustness.from_dict(model["robustness"]) for name, model in results["models"].items()}
    table = format_table(rows)
    assert list(rows) == list(NAMES.values())
    assert (DEMO / "table.md").read_text() == table
    assert "\n".join(table.splitlines()[:4]) in README


PAGES = [
    *ROOT.glob("*.md"),
    *(page for room in ("fdt_pipeline", "models", "train", "tools") for page in (ROOT / room).rglob("*.md")),
]


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
