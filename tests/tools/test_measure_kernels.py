"""The measurement of the kernels, at a size at which its figures mean nothing and its JSON is whole."""

import json
import shutil

import pytest

from tools.measure_kernels import CLASSES, main
from tools.rounds import bounded, ratios, table

pytestmark = pytest.mark.compile


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_every_class_type_and_level_is_measured_and_held_against_the_multiply_adds(tmp_path, capsys):
    main([str(tmp_path / "out" / "kernels.json"), "--rounds", "2", "--seconds", "0.001"])
    results = json.loads((tmp_path / "out" / "kernels.json").read_text())
    for rate in results["outputs a second"].values():
        assert len(rate["values"]) == 2
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    for num_classes in CLASSES:
        for way in ("multiply-adds", "float32", "float16"):
            assert f"C = {num_classes}, 1 thread, {way}" in results["outputs a second"]
    assert capsys.readouterr().out.splitlines() == table(results["ratios"]).splitlines()
    assert results["hardware"]["cpu"]
    assert "commit" in results["versions"]  # None outside of a git checkout


def test_a_ratio_is_taken_round_by_round():
    """The median of ratios is not the ratio of medians: the second round ran at a third of the clock."""
    found = bounded("ratio", "r", ratios([30.0, 10.0, 33.0], [15.0, 4.0, 11.0]), 2.4, 3.0)
    assert found["values"] == [2.0, 2.5, 3.0]
    assert table([found]).splitlines()[-1] == "| r | 2.5 [2, 3] | 2.4 | 3 | yes |"
