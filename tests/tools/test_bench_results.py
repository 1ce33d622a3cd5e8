"""Medians and ratios of given numbers, what is printed and drawn of them, and what two results differ by."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.bench_results import contender, results, steady
from tools.__main__ import main
from tools.bench.report import _part, compare, rendered, report
from tools.bench.results import estimate, paired_ratio, read_results
from tools.bench.summary import summary

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
    share = np.mean([one.low <= 1 <= one.high for one in found])
    assert found[0].confidence >= 0.95
    assert share == pytest.approx(found[0].confidence, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)


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
        return next(line for line in lines if line.startswith(name) and ".." in line)

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


def test_files_are_rendered_one_after_another_as_markdown(two, tmp_path, capsys):
    paths = [write(tmp_path / f"{name}.json", two) for name in "ab"]
    assert main(["bench", "--render", *paths]) == 0
    printed = capsys.readouterr().out
    assert printed == rendered(paths) == "\n".join(rendered([path]) for path in paths)
    assert printed.count("| ours | 1,000 [980 .. 1,020] | 1 [1 .. 1] | 5,500 |") == 2
    assert "ffcv: not installed (pip install ffcv)" in printed
    assert "[b.json](b.json)" in rendered(["a.json", "b.json"], tmp_path)


def test_with_a_step_tables_tell_how_evenly_batches_come_in_every_race():
    """p50 is 10 ms and p99 30 ms; memory at its highest."""
    found = results(contender("ours", steady(1000)), sweeps={"classes": {"7": [contender("ours", steady(50))]}})
    found["options"]["step"] = 50.0
    row = ["10", "30", "3", "1.5", "0.5", "450", "25.0 %"]
    cells = [" ".join(row), f"| {' | '.join(row)} |"]
    printed = ["\n".join(" ".join(line.split()) for line in report(found)), "\n".join(_part(found, "a.json"))]
    assert [text.count(some) for text, some in zip(printed, cells, strict=True)] == [2, 2]
    assert "classes, 7" in printed[1]


@pytest.mark.parametrize("page", ["tools/README.md"])
def test_the_blocks_of_our_pages_agree_with_the_committed_results(page):
    blocks = re.findall(r"<!-- bench (.+?) -->\n(.*?)<!-- /bench -->", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for files, block in blocks:
        assert block == rendered(files.split(), (ROOT / page).parent)


def test_the_summary_has_a_row_a_loader_and_a_column_a_mixing(tmp_path):
    """p99 is 30 ms and the most memory 300 MB; a loader without a mixing leaves its cell empty."""
    found = results(
        contender("ours, resident, native, FDT", steady(500), "fdt"),
        contender("ours, resident, native, no FDT", steady(1000)),
        contender("ours, streaming, native, FDT of at most 4", steady(300), "fdt in a ring"),
        contender("timm, Mixup", steady(20), "mixup"),
        contender("timm", [10, 30, 90, 200, 400, 900]),
    )
    (tmp_path / "a.json").write_text(json.dumps(found))
    rows = summary(["a.json"], tmp_path).splitlines()
    assert rows[2:5] == [
        "| ours, set in memory, 32 x 32 | 1,000 |  | 500 | 30 | 300 |",
        "| ours, from shards, 32 x 32 |  |  | 300 (at most 4) | 30 | 300 |",
        "| timm, 32 x 32 | too noisy | 20 |  | 30 | 300 |",
    ]
    assert rows[-1].endswith("batches of 256, medians of 6 rounds: [a.json](a.json).")


def test_the_front_pages_table_is_the_summary_of_the_committed_results():
    [(files, block)] = re.findall(
        r"<!-- summary (.+?) -->\n(.*?)<!-- /summary -->", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert block == summary(files.split(), ROOT)


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 2, "contenders": [1]}', "[]"])
def test_files_that_are_no_results_are_an_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="expected results of"):
        read_results(tmp_path / "a.json")


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


def test_sweeps_and_training_are_compared_too_and_of_two_machines_the_ratios_to_the_first_contender():
    def changes(rate, **about):
        def found(rate, **about):
            pair = [contender("a", steady(rate)), contender("b", steady(2 * rate))]
            sweeps = {"classes": {"10": [contender("a", steady(rate))]}, "batch_sizes": {}}
            return results(*pair, training=[contender("a", steady(2 * rate))], sweeps=sweeps, **about)

        compared = compare(found(100), found(rate, **about))
        return {change.name: round(change.ratio, 3) for change in compared}

    names = ("a", "b", "training: a", "classes, 10: a")
    assert changes(50) == dict.fromkeys(names, 0.5)
    assert changes(50, machine={"cpu": "another"}) == dict.fromkeys(names, 1)


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


@pytest.mark.parametrize(("rate", "status", "code"), [(100, "left out", 0), (90, "left out", 1), (110, "failed", 1)])
def test_the_command_exits_1_on_a_regression_or_where_a_contender_fails_now(tmp_path, capsys, rate, status, code):
    pairs = (
        (contender("a", steady(100)), contender("b", steady(1))),
        (contender("a", steady(rate)), contender("b", [], status=status, reason="why")),
    )
    before, after = (
        write(tmp_path / f"{version}.json", results(*pair, versions={"torch": version}))
        for pair, version in zip(pairs, ("2.9", "2.10"), strict=True)
    )
    assert main(["bench", "--compare", before, after, "--bound", "0.2"]) == (status == "failed")
    capsys.readouterr()
    assert main(["bench", "--compare", before, after, "--bound", "0.05"]) == code
    printed = capsys.readouterr().out
    assert ("regression" in printed) == (code == 1)
    assert ("b: regression: failed: why" in printed) == (status == "failed")
    assert "torch: 2.9 -> 2.10" in printed
