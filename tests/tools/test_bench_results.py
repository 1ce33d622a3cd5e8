"""Medians and ratios of given numbers, what is printed and drawn of them, and what two results differ by."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.bench_results import contender, results, steady
from tools.__main__ import main
from tools.bench.plot import draw
from tools.bench.report import compare, filled, markdown_table, number, rendered, report, text_table
from tools.bench.results import estimate, paired_ratio, read_results

ROOT = Path(__file__).parents[2]
NOISY = [50, 60, 100, 100, 140, 150]


@pytest.mark.parametrize(
    ("n", "left_out", "confidence"), [(5, 0, 0.9375), (6, 0, 1 - 2 / 64), (9, 1, 1 - 2 * 10 / 512)]
)
def test_the_interval_leaves_out_as_many_at_either_end_as_its_confidence_allows(n, left_out, confidence):
    """Five repeats cover less than the 95 percent that are wanted, and say so."""
    found = estimate(np.random.default_rng(0).permutation(np.arange(1, n + 1)).tolist())
    assert (found.median, found.low, found.high) == ((n + 1) / 2, 1 + left_out, n - left_out)
    assert found.confidence == pytest.approx(confidence)


@pytest.mark.parametrize("n", [6, 9, 15])
def test_the_interval_covers_the_true_median_as_often_as_it_says(n):
    rng = np.random.default_rng(0)
    found = [estimate(np.exp(rng.normal(size=n)).tolist()) for _ in range(4000)]
    share = np.mean([one.covers(1.0) for one in found])
    assert found[0].confidence >= 0.95
    assert share == pytest.approx(found[0].confidence, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=12))
def test_the_median_lies_within_the_interval(values):
    found = estimate(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_ratios_within_rounds_do_not_see_a_clock_that_changes_between_them():
    clock = [1.0, 0.5, 2.0, 0.7, 1.3, 0.9]
    found = paired_ratio([90 * c for c in clock], [100 * c for c in clock])
    assert (found.low, found.high) == (pytest.approx(0.9), pytest.approx(0.9))


def test_costs_are_of_all_images_from_rest_to_rest():
    summary = results(contender("a", steady(100)))["contenders"][0]["summary"]
    assert summary["cpu_us_per_image"] == 50
    assert summary["bytes_by_read_per_image"] == 2
    assert (summary["memory_mb"], summary["peak_mb"]) == (300, 450)
    assert summary["waiting"] == 0.25
    assert estimate([9, 10, 14]).spread == pytest.approx(0.4), "the longer arm, as a share of the median"


def write(path, found):
    path.write_text(json.dumps(found))
    return str(path)


@pytest.fixture
def two():
    missing = {"status": "not installed", "reason": "pip install ffcv", "turns": [], "start": {}}
    return results(
        contender("ours", steady(1000), "fdt", 5.5),
        contender("theirs", steady(500)),
        contender("noisy", NOISY, note="it is a shaky one"),
        contender("ffcv", [], **missing),
        training=[contender("small, the same batch again", steady(100)), contender("small, ours", steady(80))],
    )


def test_rates_ratios_costs_notes_and_the_noise_are_printed(two):
    """A result whose interval is too wide says so instead of a number."""
    two["contenders"][1]["summary"]["rests"] = False
    lines = list(report(two))

    def row(name):
        return next(line for line in lines if line.startswith(name) and "/" in line)

    assert row("ours").split()[1] == "1,000"
    assert "5,500" in row("ours")
    assert [one["summary"]["ratio"]["median"] for one in two["contenders"][:2]] == [1, 0.5]
    assert row("noisy").count("too noisy") == 2
    assert "50 .. 150" in row("noisy")
    assert " 100 " not in row("noisy").replace("..", "")
    [fed] = (line for line in lines if line.startswith("small, ours"))
    assert fed.split()[-2:] == ["25.0", "%"]
    assert "0.8" in fed
    assert "ffcv: not installed: pip install ffcv" in lines
    assert "noisy: it is a shaky one" in lines
    assert any(line.startswith("theirs: worked on while others were measured") for line in lines)
    assert any(line.startswith("noise") and "arithmetic 2.0 %" in line for line in lines)
    assert any(line.startswith("interval") and "96.9 %" in line for line in lines)


@pytest.mark.parametrize(("value", "text"), [(123456, "123,000"), (99.94, "99.9"), (0.01234, "0.0123"), (0, "0")])
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_first_column_is_to_the_left_and_others_to_the_right():
    assert list(text_table([("a", "bb"), ("ccc", "d")])) == ["a    bb", "ccc   d"]
    assert list(markdown_table([("a", "bb"), ("ccc", "d")])) == ["| a | bb |", "|---|---:|", "| ccc | d |"]


def test_a_block_of_a_page_has_all_of_its_files_as_the_command_renders_them(two, tmp_path, capsys):
    for name in "ab":
        write(tmp_path / f"{name}.json", two)
    new = filled("before\n<!-- bench a.json b.json -->\nold\n<!-- /bench -->\nafter\n", tmp_path)
    block = rendered(["a.json", "b.json"], tmp_path)
    assert new == f"before\n<!-- bench a.json b.json -->\n{block}<!-- /bench -->\nafter\n"
    assert block.count("| ours | 1,000 [980 .. 1,020] | 1 [1 .. 1] | 5,500 |") == 2
    assert "ffcv: not installed (pip install ffcv)" in block
    assert "[b.json](b.json)" in block
    path = str(tmp_path / "a.json")
    assert main(["bench", "--render", path]) == 0
    assert capsys.readouterr().out == rendered([path])


@pytest.mark.parametrize("page", ["README.md", "tools/README.md"])
def test_the_blocks_of_our_pages_agree_with_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert "<!-- bench " in text
    assert filled(text, (ROOT / page).parent) == text


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 2, "contenders": [1]}', "[]"])
def test_files_that_are_no_results_are_an_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="expected results of"):
        read_results(tmp_path / "a.json")


def test_a_picture_has_bars_of_what_was_measured_and_a_panel_for_each_sweep(tmp_path):
    def drawn(found):
        draw(found, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as image:
            assert np.asarray(image.convert("L")).std() > 10
            return image.size

    many = [contender(f"contender {i}", steady(10**i), mixing) for i, mixing in enumerate(["none", "fdt", "mixup"])]
    many.append(contender("b", [], status="failed", reason="x"))
    width, height = drawn(results(*many))
    assert width > 900
    sweeps = {"classes": {str(c): [contender("a", steady(100 / c))] for c in (10, 100, 1000)}, "batch_sizes": {}}
    assert drawn(results(*many, sweeps=sweeps))[1] > height + 300


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        (steady(90), "regression"),
        (steady(95.5), "slower, within the bound"),
        (steady(110), "faster"),
        (steady(99), "no change beyond noise"),
        (steady(102), "no change beyond noise"),
        ([60, 70, 80, 100, 120, 130], "no change beyond noise"),
    ],
)
def test_a_change_beyond_noise_is_judged_by_the_bound(rates, verdict):
    [change] = compare(results(contender("a", steady(100))), results(contender("a", rates)))
    assert change.verdict(0.05) == verdict


def test_of_two_machines_the_ratios_to_the_first_contender_are_compared():
    before = results(contender("a", steady(100)), contender("b", steady(50)))
    after = results(contender("a", steady(1000)), contender("b", steady(500)), machine={"cpu": "another"})
    assert {change.name: round(change.ratio, 3) for change in compare(before, after)} == {"a": 1, "b": 1}


def test_what_was_not_measured_alike_cannot_be_compared():
    before, after = (results(contender("a", rates)) for rates in (steady(100), [*steady(100), 100]))
    after["options"]["repeats"] = 7
    assert len(compare(before, after)) == 1, "more repeats may be compared with fewer"
    after["data"] = {**after["data"], "manifest_sha256": "11"}
    with pytest.raises(ValueError, match="data, manifest_sha256: 00 and 11"):
        compare(before, after)
    after["data"], after["options"]["batch_size"] = before["data"], 32
    with pytest.raises(ValueError, match="options, batch_size: 256 and 32"):
        compare(before, after)
    with pytest.raises(ValueError, match="no contender in common"):
        compare(before, results(contender("b", steady(1))))


@pytest.mark.parametrize(("rate", "code"), [(100, 0), (90, 1), (110, 0)])
def test_the_command_exits_1_on_a_regression(tmp_path, capsys, rate, code):
    before, after = (
        write(tmp_path / f"{version}.json", results(contender("a", steady(value)), versions={"torch": version}))
        for value, version in ((100, "2.9"), (rate, "2.10"))
    )
    assert main(["bench", "--compare", before, after, "--bound", "0.2"]) == 0
    capsys.readouterr()
    assert main(["bench", "--compare", before, after, "--bound", "0.05"]) == code
    printed = capsys.readouterr().out
    assert ("regression" in printed) == (code == 1)
    assert "torch: 2.9 -> 2.10" in printed


def test_a_contender_that_is_refused_or_fails_now_is_a_regression(tmp_path, capsys):
    gone = [contender(name, [], status=status, reason="why") for name, status in (("b", "failed"), ("c", "left out"))]
    before = write(tmp_path / "before.json", results(*(contender(name, steady(100)) for name in "abc")))
    after = write(tmp_path / "after.json", results(contender("a", steady(100)), *gone))
    assert main(["bench", "--compare", before, after]) == 1
    printed = capsys.readouterr().out
    assert "b: regression: failed: why" in printed
    assert "c: regression" not in printed


def test_sweeps_and_training_are_compared_too():
    def found(rate):
        sweeps = {"classes": {"10": [contender("a", steady(rate))]}, "batch_sizes": {}}
        return results(contender("a", steady(1)), training=[contender("a", steady(2 * rate))], sweeps=sweeps)

    changes = {change.name: round(change.ratio, 3) for change in compare(found(100), found(50))}
    assert changes == {"a": 1, "training: a": 0.5, "classes, 10: a": 0.5}
