"""What two results differ by."""

import json

import pytest

from tests.bench_results import contender, results, steady
from tools.__main__ import main
from tools.bench.report import compare


def verdicts(before, after, bound=0.05):
    return {change.name: change.verdict(bound) for change in compare(before, after)}


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(90, "regression"), (95.5, "slower, within the bound"), (110, "faster"), (99, "no change"), (102, "no change")],
)
def test_a_change_beyond_noise_is_judged_by_the_bound(rate, verdict):
    found = verdicts(results(contender("a", steady(100))), results(contender("a", steady(rate))))
    assert found["a"].startswith(verdict)


def test_a_slow_median_of_a_noisy_contender_is_no_regression():
    noisy = [60, 70, 80, 100, 120, 130]
    assert verdicts(results(contender("a", steady(100))), results(contender("a", noisy))) == {
        "a": "no change beyond noise"
    }


def test_of_two_machines_the_ratios_to_the_first_contender_are_compared():
    before = results(contender("a", steady(100)), contender("b", steady(50)))
    after = results(contender("a", steady(1000)), contender("b", steady(500)), machine={"cpu": "another"})
    assert {change.name: round(change.ratio, 3) for change in compare(before, after)} == {"a": 1, "b": 1}


def test_what_was_not_measured_alike_cannot_be_compared():
    before, after = results(contender("a", steady(1))), results(contender("a", steady(1)))
    after["options"]["batch_size"] = 32
    with pytest.raises(ValueError, match="options, batch_size: 256 and 32"):
        compare(before, after)
    after["options"]["batch_size"] = 256
    after["data"] = {**after["data"], "manifest_sha256": "11"}
    with pytest.raises(ValueError, match="data, manifest_sha256: 00 and 11"):
        compare(before, after)


def test_more_repeats_may_be_compared_with_fewer():
    before, after = results(contender("a", steady(100))), results(contender("a", [*steady(100), 100]))
    after["options"]["repeats"] = 7
    assert len(compare(before, after)) == 1


def test_without_a_common_contender_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="no contender in common"):
        compare(results(contender("a", steady(1))), results(contender("b", steady(1))))


@pytest.mark.parametrize(("rate", "code"), [(100, 0), (90, 1), (110, 0)])
def test_the_command_exits_1_on_a_regression(tmp_path, capsys, rate, code):
    paths = []
    for name, value, version in (("before", 100, "2.9"), ("after", rate, "2.10")):
        path = tmp_path / f"{name}.json"
        found = results(contender("a", steady(value)), versions={"torch": version})
        path.write_text(json.dumps(found))
        paths.append(str(path))
    assert main(["bench", "--compare", *paths, "--bound", "0.2"]) == 0
    capsys.readouterr()
    assert main(["bench", "--compare", *paths, "--bound", "0.05"]) == code
    printed = capsys.readouterr().out
    assert ("regression" in printed) == (code == 1)
    assert "torch: 2.9 -> 2.10" in printed


def test_who_is_refused_or_fails_now_is_a_regression(tmp_path, capsys):
    before = results(contender("a", steady(100)), contender("b", steady(100)), contender("c", steady(100)))
    gone = [contender(name, [], status=status, reason="why") for name, status in (("b", "failed"), ("c", "left out"))]
    after = results(contender("a", steady(100)), *gone)
    for name, found in (("before", before), ("after", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    assert main(["bench", "--compare", str(tmp_path / "before.json"), str(tmp_path / "after.json")]) == 1
    printed = capsys.readouterr().out
    assert "b: regression: failed: why" in printed
    assert "c: regression" not in printed


def test_sweeps_and_training_are_compared_too():
    def found(rate):
        sweeps = {"classes": {"10": [contender("a", steady(rate))]}, "batch_sizes": {}}
        return results(contender("a", steady(1)), training=[contender("a", steady(2 * rate))], sweeps=sweeps)

    changes = {change.name: round(change.ratio, 3) for change in compare(found(100), found(50))}
    assert changes == {"a": 1, "training: a": 0.5, "classes, 10: a": 0.5}
