"""What is printed and drawn, and the pages that are made of results."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bench_results import contender, results, steady
from tools.__main__ import main
from tools.bench.plot import draw
from tools.bench.report import filled, markdown_table, number, rendered, report, text_table
from tools.bench.results import read_results

ROOT = Path(__file__).parents[2]
NOISY = [50, 60, 100, 100, 140, 150]


@pytest.fixture
def two():
    missing = {"status": "not installed", "reason": "pip install ffcv", "turns": [], "start": {}}
    return results(
        contender("ours", steady(1000), "fdt", 5.5),
        contender("theirs", steady(500)),
        contender("noisy", NOISY, note="it is a shaky one"),
        contender("ffcv", [], **missing),
    )


def row(found, name, with_text="/"):
    return next(line for line in report(found) if line.startswith(name) and with_text in line)


def test_rates_ratios_and_source_images_are_printed(two):
    assert row(two, "ours").split()[1] == "1,000"
    assert "5,500" in row(two, "ours")
    assert [one["summary"]["ratio"]["median"] for one in two["contenders"][:2]] == [1, 0.5]


def test_a_result_whose_interval_is_too_wide_says_so_instead_of_a_number(two):
    line = row(two, "noisy")
    assert line.count("too noisy") == 2
    assert "50 .. 150" in line
    assert " 100 " not in line.replace("..", "")


def test_notes_noise_and_who_is_missing_or_busy_are_printed(two):
    two["contenders"][1]["summary"]["rests"] = False
    lines = list(report(two))
    assert "ffcv: not installed: pip install ffcv" in lines
    assert "noisy: it is a shaky one" in lines
    assert any(line.startswith("theirs: worked on while others were measured") for line in lines)
    assert any(line.startswith("noise") and "arithmetic 2.0 %" in line for line in lines)
    assert any(line.startswith("interval") and "96.9 %" in line for line in lines)


def test_costs_are_of_all_images_from_rest_to_rest():
    summary = results(contender("a", steady(100)))["contenders"][0]["summary"]
    assert summary["cpu_us_per_image"] == 50
    assert summary["bytes_by_read_per_image"] == 2
    assert (summary["memory_mb"], summary["peak_mb"]) == (300, 450)
    assert summary["waiting"] == 0.25


def test_training_is_told_beside_its_bound():
    model = contender("small, the same batch again", steady(100))
    fed = contender("small, ours", steady(80))
    lines = list(report(results(contender("ours", steady(1000)), training=[model, fed])))
    (line,) = (line for line in lines if line.startswith("small, ours"))
    assert line.split()[-2:] == ["25.0", "%"]
    assert "0.8" in line


@pytest.mark.parametrize(("value", "text"), [(123456, "123,000"), (99.94, "99.9"), (0.01234, "0.0123"), (0, "0")])
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_first_column_is_to_the_left_and_others_to_the_right():
    assert list(text_table([("a", "bb"), ("ccc", "d")])) == ["a    bb", "ccc   d"]
    assert list(markdown_table([("a", "bb"), ("ccc", "d")])) == ["| a | bb |", "|---|---:|", "| ccc | d |"]


def write(path, found):
    path.write_text(json.dumps(found))
    return path


def test_a_block_of_a_page_has_all_of_its_files_and_nothing_else(two, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.json", two)
    page = "before\n<!-- bench a.json b.json -->\nold\n<!-- /bench -->\nafter\n"
    new = filled(page, tmp_path)
    assert new.startswith("before\n<!-- bench a.json b.json -->\n")
    assert new.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in new
    assert new.count("| ours | 1,000 [980 .. 1,020] | 1 [1 .. 1] | 5,500 |") == 2
    assert "ffcv: not installed (pip install ffcv)" in new
    assert "[b.json](b.json)" in new


def test_files_that_are_no_results_are_an_error(tmp_path):
    for text in ("{", "{}", '{"format": 2, "contenders": [1]}', "[]"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match="expected results of"):
            read_results(tmp_path / "a.json")


def test_the_command_prints_markdown(two, tmp_path, capsys):
    path = write(tmp_path / "a.json", two)
    assert main(["bench", "--render", str(path)]) == 0
    assert capsys.readouterr().out == rendered([str(path)])


@pytest.mark.parametrize("page", ["README.md", "tools/README.md"])
def test_the_blocks_of_our_pages_agree_with_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert "<!-- bench " in text
    assert filled(text, (ROOT / page).parent) == text


def drawn(found, tmp_path):
    draw(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
        return image.size


def test_a_picture_has_bars_of_what_was_measured_and_a_panel_for_each_sweep(tmp_path):
    many = [contender(f"contender {i}", steady(10**i), mixing) for i, mixing in enumerate(["none", "fdt", "mixup"])]
    many.append(contender("b", [], status="failed", reason="x"))
    width, height = drawn(results(*many), tmp_path)
    assert width > 900
    sweeps = {"classes": {str(c): [contender("a", steady(100 / c))] for c in (10, 100, 1000)}, "batch_sizes": {}}
    assert drawn(results(*many, sweeps=sweeps), tmp_path)[1] > height + 300
