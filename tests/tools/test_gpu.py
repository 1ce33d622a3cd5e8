"""`python -m tools gpu`: its stages at a size at which figures mean nothing, and what it makes of a stage's end."""

import json
import sys

import pytest

from tools.__main__ import main
from tools.gpu import LIMITS, report, run_stage
from tools.gpu_stages import row

STAGES = [name for name in LIMITS if not name.endswith("tests")]  # which are tests of their own here


@pytest.mark.process
@pytest.mark.dali
def test_every_stage_leaves_its_figures_with_where_they_come_from(tmp_path, capsys):
    assert main(["gpu", str(tmp_path / "gpu"), "--device", "cpu", "--commit", "abc", "--stages", *STAGES]) == 0
    record = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert record["commit"] == "abc"
    assert record["hardware"]["cpu"]
    assert record["versions"]["torch"]
    assert {name: stage["status"] for name, stage in record["stages"].items()} == dict.fromkeys(STAGES, "done")
    rows = [row for stage in record["stages"].values() for row in stage.get("rows", {}).values()]
    assert sum(row["at_least"] is not None for row in rows) == 11
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in rows)
    assert (tmp_path / "gpu" / "gpu.md").read_text() == capsys.readouterr().out


HANGS = "print('last')\nwhile True: pass"
CRASHES = "import os; print('last words', flush=True); os.abort()"


@pytest.mark.parametrize(
    ("end", "status", "tail"),
    [("print('fine')", "done", "fine"), (HANGS, "timed out", "last"), (CRASHES, "exit code -6", "last words")],
)
def test_a_stage_that_hangs_or_crashes_keeps_what_it_has_found(tmp_path, end, status, tail):
    file = tmp_path / "stage.jsonl"
    found = [row("first", [1.0]), row("second", [2.0], 3), {"notes": {"third": [4]}}]
    code = f"open({str(file)!r}, 'w').write({''.join(json.dumps(each) + chr(10) for each in found)!r})\n{end}"
    stage = run_stage([sys.executable, "-c", code], 3 if end == HANGS else 60, file)
    assert (stage["status"], stage["tail"]) == (status, [tail])
    record = {"commit": "abc", "hardware": {"cores": 2, "cpu": "A"}, "versions": {"torch": "2"}, "stages": {"a": stage}}
    lines = report(record).splitlines()
    assert lines[5:7] == ["| first | 1 [1, 1] |  |  |  |", "| second | 2 [2, 2] | 3 |  | no |"]
    assert lines[8].startswith(f"* a: {status}, ")
    assert lines[9:] == ["  * third: [4]", *([] if status == "done" else [f"  * `{tail}`"])]


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", str(tmp_path)]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().err
