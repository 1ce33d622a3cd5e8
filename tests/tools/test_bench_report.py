"""What is printed, and the pages that are made of results."""

import json
from pathlib import Path

import pytest

from tests.bench_results import contender, results, steady
from tools.__main__ import main
from tools.bench.report import filled, number, read_results, rendered, report
from tools.tables import markdown_table, text_table

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


def test_outputs_and_source_images_are_told(two):
    assert row(two, "ours").split()[1] == "1,000"
    assert "5,500" in row(two, "ours")
    assert two["contenders"][1]["summary"]["source_images_per_second"] == 500


def test_ratios_are_to_the_first(two):
    assert two["contenders"][0]["summary"]["ratio"]["median"] == 1
    assert two["contenders"][1]["summary"]["ratio"]["median"] == 0.5


def test_a_result_whose_interval_is_too_wide_says_so_instead_of_a_number(two):
    line = row(two, "noisy")
    assert line.count("too noisy") == 2
    assert "50 .. 150" in line
    assert " 100 " not in line.replace("..", "")


def test_what_is_not_installed_is_listed_with_the_reason(two):
    assert "ffcv: not installed: pip install ffcv" in list(report(two))


def test_notes_and_noise_are_told(two):
    lines = list(report(two))
    assert "noisy: it is a shaky one" in lines
    assert any(line.startswith("noise") and "arithmetic 2.0 %" in line for line in lines)
    assert any(line.startswith("interval") and "96.9 %" in line for line in lines)


def test_who_does_not_rest_is_told():
    found = results(contender("a", steady(1)))
    found["contenders"][0]["summary"]["rests"] = False
    assert any("worked on while others were measured" in line for line in report(found))


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


def test_a_page_is_filled_from_its_files_and_from_nothing_else(two, tmp_path):
    write(tmp_path / "a.json", two)
    page = "before\n<!-- bench a.json -->\nold\n<!-- /bench -->\nafter\n"
    new = filled(page, tmp_path)
    assert new.startswith("before\n<!-- bench a.json -->\n")
    assert new.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in new
    assert "| ours | 1,000 [980 .. 1,020] | 1 [1 .. 1] | 5,500 |" in new
    assert "ffcv: not installed (pip install ffcv)" in new
    assert filled(new, tmp_path) == new


def test_a_block_of_several_files_has_all_of_them(two, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.json", two)
    new = filled("<!-- bench a.json b.json -->\n<!-- /bench -->", tmp_path)
    assert new.count("| ours |") == 2
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
