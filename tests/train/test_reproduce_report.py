"""Tables, verdicts and the report, from records with made-up figures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fdt_pipeline import Augment
from tests.train.made_up import TINY, made_up_record, write_table
from train.files import read_json
from train.reproduce.claims import Claim, Difference, Measure, difference, grouped, judge, verdict
from train.reproduce.paper import PAPER, Row, select_rows, table_rows
from train.reproduce.record import Record
from train.reproduce.report import ALL_COLUMNS, write_report, write_sweep_report
from train.reproduce.running import in_order
from train.reproduce.settings import Settings, recipe_of
from train.reproduce.tables import summary_table
from train.robustness import EPS_VALUES

RESULTS = Path(__file__).parents[2] / "train" / "results"
COMMITTED = sorted(path.parent for path in RESULTS.glob("*/plan.json"))


def small(column, dataset="cifar10"):
    return Row(dataset, "small", column)


def records_of(column, seeds=(0, 1, 2), **figures):
    return [made_up_record(small(column), seed, **figures) for seed in seeds]


def cells(text, column):
    """Lines of the first table whose first cell is `column`, split."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if line[0] == column]


def test_the_papers_tables_are_whole():
    assert EPS_VALUES == (1e-1, 1e-2, 1e-3, 1e-4)
    row = PAPER["cifar100", "resnet34", "tn_fdt"]
    assert (row.clean, row.std, row.eq7) == (74.37, 0.27, (9.91, 46.92, 72.38, 74.37))
    assert PAPER["cifar100", "wrn28_10", "plain"].std is None
    assert all(row.eq7[0] < row.eq7[1] < row.eq7[2] <= row.eq7[3] <= row.clean for row in PAPER.values())
    rows = [*table_rows("table1"), *table_rows("table2")]
    assert len(rows) == 20 + 4
    assert {(row.dataset, row.model, row.column) for row in rows} == set(PAPER)
    assert small("fdt").paper == PAPER["cifar10", "resnet34", "fdt"]


def test_rows_are_chosen_by_part_or_pattern():
    rows = table_rows("table1")
    assert [row.column for row in select_rows(rows, ["svhn"])] == ["plain", "tn_fdt", "fdt", "tn", "ov"]
    assert len(select_rows(rows, ["ov", "cifar100-*"])) == 4 + 5 - 1
    assert select_rows(rows, None) == list(rows)
    sweep = select_rows([small(column) for column in ALL_COLUMNS], ["fdt*", "pono"])
    assert [row.column for row in sweep[:3]] == ["fdt", "fdt_max2", "fdt_k2"]
    with pytest.raises(ValueError, match=r"--only cifar11 names no row; rows: cifar10-resnet34-plain"):
        select_rows(rows, ["cifar10", "cifar11"])


def test_a_data_set_is_done_seed_by_seed_with_the_most_telling_rows_first():
    order = [
        (row.key, seed) for row, seed in in_order(table_rows("table1"), lambda _: (0, 1), {"cifar100": "not there"})
    ]
    assert order[:2] == [("cifar10-resnet34-plain", 0), ("cifar10-resnet34-tn_fdt", 0)]
    assert order[5] == ("cifar10-resnet34-plain", 1)
    assert order[10] == ("fashion-mnist-resnet34-plain", 0)


def test_recipes_are_the_papers_but_for_the_switches():
    plain = recipe_of(Row("svhn", "resnet34", "plain"), Settings("table1"), 4)
    assert (plain.augment, plain.seed, plain.epochs, plain.lr_drop_every) == (None, 4, 150, 30)
    swept = recipe_of(Row("svhn", "small", "plain"), Settings("sweep"), 0)  # a folder's name decides nothing
    assert swept.augment == Augment()
    switched = Settings("table1", stem="cifar-pool", tensor_norm="exact", max_images=3, anchor="epoch", epochs=15)
    recipe = recipe_of(Row("cifar10", "resnet34", "tn_fdt"), switched, 0)
    assert (recipe.stem, recipe.tensor_norm, recipe.mix.max_images) == ("cifar-pool", "exact", 3)
    assert (recipe.mix.anchor, recipe.lr_drop_every) == ("epoch", 3)
    assert recipe_of(Row("cifar100", "wrn28_10", "plain"), switched, 0).stem == "cifar"  # it has but one
    k2 = recipe_of(small("fdt_k2"), switched, 0).mix
    assert (k2.min_images, k2.max_images, k2.anchor) == (2, 2, "epoch")
    assert Settings.from_dict(switched.to_dict()) == switched


values = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=6)


@given(values, values)
def test_the_interval_is_welchs(a, b):
    found = difference(a, b)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    if np.std(a) < 1e-6 or np.std(b) < 1e-6:
        return  # rounding is most of what is left
    shares = [np.var(each, ddof=1) / len(each) for each in (a, b)]
    freedom = sum(shares) ** 2 / sum(s**2 / (len(each) - 1) for s, each in zip(shares, (a, b), strict=True))
    half = scipy.stats.t.ppf(0.975, freedom) * sum(shares) ** 0.5
    assert found.standard_error == pytest.approx(sum(shares) ** 0.5)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-6, abs=1e-9)


def test_without_spread_or_without_a_second_seed_the_interval_is_what_can_be_said():
    assert difference([2.0, 2.0], [1.0, 1.0]) == Difference(1.0, 0.0, 1.0, 1.0)
    assert difference([2.0], [1.0, 1.5]) == Difference(0.75)


@pytest.mark.parametrize(
    ("low", "high", "margin", "word"),
    [
        (0.1, 0.9, 0, "holds"),
        (-0.1, 0.9, 0, "undecided"),
        (-0.9, -0.1, 0, "does not hold"),
        (-0.4, 0.2, 0.5, "holds"),
        (-0.6, 0.2, 0.5, "undecided"),
        (-0.9, -0.6, 0.5, "does not hold"),
        (None, None, 0, "one seed: undecided"),
    ],
)
def test_a_claim_is_judged_by_the_interval(low, high, margin, word):
    assert verdict(Difference(0.0, 0.1, low, high), margin) == word


def test_claims_are_set_beside_the_papers_difference():
    records = [Record.from_content(r) for r in [*records_of("plain", eq7=0.4), *records_of("fdt", eq7=0.6)]]
    (group,) = grouped([small("plain"), small("fdt")], records)
    verdicts = {(v.claim.text, v.claim.measure): v for v in judge(group, TINY.eps_values)}
    assert {text for text, _ in verdicts} == {"FDT keeps accuracy", "FDT is more robust by Eq. 7"}
    robust = verdicts["FDT is more robust by Eq. 7", Measure("mean", 0.1)]
    assert robust.claim == Claim("FDT is more robust by Eq. 7", "fdt", "plain", Measure("mean", 0.1))
    assert robust.paper == pytest.approx(13.81 - 6.28)
    assert robust.word == "holds"
    assert robust.last.value > 0
    assert robust.autoattack is None
    assert summary_table([(group, list(verdicts.values()))]).splitlines()[-1].split("|")[2].strip() == "holds 4"
    kept = verdicts["FDT keeps accuracy", Measure("clean")]
    assert (kept.word, kept.ours.value) == ("holds", 0)


def test_the_report_sets_mean_and_deviation_of_all_seeds_beside_the_paper(tmp_path):
    records = [made_up_record(small("plain"), seed, clean) for seed, clean in enumerate((0.90, 0.91, 0.92))]
    text = write_report(write_table(tmp_path / "t", records))
    paper, ours = cells(text, "plain")[0], cells(text, "")[0]
    assert paper[1:4] == ["paper, Eq. 7", "92.52 ± 0.25", "6.28"]
    assert ours[1:3] == ["ours, Eq. 7, 3 seeds", "91.00 ± 1.00"]
    assert ours[-1] == "not run"


def test_what_was_not_run_is_listed_and_never_filled(tmp_path):
    records = [*records_of("plain"), *records_of("fdt", seeds=(0,))]
    out = write_table(tmp_path / "t", records, missing={"fashion-mnist": "no shards in fashion-mnist/train of --data"})
    text = write_report(out)
    report = (out / "report.md").read_text()
    assert "* Fashion-MNIST, small ResNet: missing, no shards in fashion-mnist/train of --data." in report
    assert "not run: cifar10-small-ov, cifar10-small-tn, cifar10-small-tn_fdt." in report
    position = text.splitlines().index(next(line for line in text.splitlines() if line.startswith("| TN ")))
    assert "not run" in text.splitlines()[position + 1]
    assert "96.1" not in text  # the paper's row of a data set that is missing is not shown alone
    verdicts = {line[1]: line for line in (*cells(text, "TN helps"), *cells(text, "FDT keeps accuracy"))}
    assert verdicts["TN - plain, clean"][3:7] == ["", "", "", "not run"]
    assert verdicts["FDT - plain, clean"][5:7] == ["", "one seed: undecided"]


def test_autoattack_stands_beside_eq_7(tmp_path):
    found = {"num_images": 50, "eps": 8 / 256, "masked": False}
    records = [
        made_up_record(small(column), seed, autoattack={"accuracy": accuracy + seed / 100, **found})
        for column, accuracy in (("plain", 0.2), ("fdt", 0.1))
        for seed in (0, 1)
    ]
    text = write_report(write_table(tmp_path / "t", records))
    assert cells(text, "")[0][-1] == "20.50 ± 0.71"
    assert cells(text, "FDT is more robust by Eq. 7")[0][-1] == "-10.00 ± 0.71"
    report = (tmp_path / "t" / "report.md").read_text()
    assert "AutoAttack: 4 runs, on 50 images at eps = 0.03125 (8 grey levels); the checks found signs" in report


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_reports_are_remade_from_their_records_alone(folder, tmp_path):
    shutil.copy(folder / "plan.json", tmp_path)
    shutil.copytree(folder / "records", tmp_path / "records")
    is_sweep = read_json(folder / "plan.json")["settings"]["table"] == "sweep"
    (write_sweep_report if is_sweep else write_report)(tmp_path)
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {path.name for path in folder.glob("*.png")}
    for name in pictures:  # matplotlib's releases draw them by other pixels
        assert (np.asarray(Image.open(tmp_path / name).convert("L")) < 200).mean() > 0.01


def test_a_folder_without_a_table_or_with_another_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no table: make one with"):
        write_report(tmp_path)
    out = write_table(tmp_path / "t", records_of("plain"))
    with pytest.raises(ValueError, match="holds table1, not table2"):
        write_report(out, "table2")
    with pytest.raises(ValueError, match="holds table1, not sweep"):
        write_sweep_report(out)


def row_of(text, mixing):
    (line,) = [line for line in cells(text, mixing) if line[1].startswith("`")]
    return line


ASKED = Settings("sweep", epochs=150, attack_images=1000, attack_steps=5)


def test_the_table_of_mixings_has_every_figure_beside_its_argument_and_says_what_was_not_run(tmp_path):
    attacked = [
        {"accuracy": share, "num_images": 200, "eps": n / 256, "masked": None} for n, share in ((1, 0.4), (2, 0.1))
    ]
    calibration = {"error": 0.1234, "bins": 15, "num_images": 10_000}
    records = [
        made_up_record(small("plain"), clean=0.9, settings=ASKED, autoattack=attacked, calibration=calibration),
        made_up_record(small("mixup"), clean=0.8, settings=ASKED, calibration=None),
    ]
    out = write_table(tmp_path / "t", records, ASKED)
    write_sweep_report(out)
    text = (out / "report.md").read_text()
    plain, mixup = row_of(text, "plain"), row_of(text, "MixUp 1.0")
    low, high = scipy.stats.binomtest(9000, 10_000).proportion_ci(0.95, method="wilson")
    assert plain[1:3] == ["`None`", f"90.00 [{100 * low:.1f}, {100 * high:.1f}]"]
    assert plain[-3:] == ["40.00 [33.5, 46.9]", "10.00 [6.6, 14.9]", "12.34"]
    assert mixup[1] == "`MixUp(alpha=1.0)`"
    assert mixup[-3:] == ["not run", "not run", "not measured"]
    assert row_of(text, "CutMix 1.0")[2] == "not run"
    assert "AutoAttack 1/255" in text
    assert "AutoAttack: 1 run, on 200 images at eps = 0.00390625 (1 grey level)." in text


def test_an_older_versions_mixup_is_not_a_row_of_the_table_of_mixings(tmp_path):
    record = made_up_record(small("mixup"), settings=ASKED)
    record["training"]["recipe"]["mixup"] = 1.0
    out = write_table(tmp_path / "t", [record], ASKED)
    write_sweep_report(out)
    assert row_of((out / "report.md").read_text(), "MixUp 1.0")[2] == "not run"


@pytest.mark.parametrize("write", [write_report, write_sweep_report])
def test_accuracy_is_drawn_against_width_where_two_widths_have_been_run(tmp_path, write):
    settings = ASKED if write is write_sweep_report else Settings("table1", "medium", epochs=150, attack_images=100)
    records = [
        made_up_record(Row("cifar10", model, column), seed, settings=settings)
        for model, seed in (("small", 0), ("small32", 0), ("small32", 1))
        for column in ("plain", "tn_fdt")
    ]
    write(write_table(tmp_path / "one", records[:2], settings))
    assert not (tmp_path / "one" / "cifar10-width.png").exists()
    out = write_table(tmp_path / "two", records, settings)
    write(out)
    assert (np.asarray(picture := Image.open(out / "cifar10-width.png").convert("L")) < 200).mean() > 0.01
    assert "](cifar10-width.png)" in (out / "report.md").read_text()
    records[0]["autoattack"] = [{"eps": 1 / 256, "accuracy": 0.3, "num_images": 100, "masked": None}]
    write(write_table(tmp_path / "attacked", records, settings))
    with Image.open(tmp_path / "attacked" / "cifar10-width.png") as attacked:
        assert attacked.width > 1.2 * picture.width, "a panel more"


def test_the_medium_scale_says_how_far_it_is_from_the_paper_and_stands_beside_it(tmp_path):
    settings = Settings("table1", "medium", epochs=150, attack_images=100)
    text = write_report(write_table(tmp_path / "t", [made_up_record(small("fdt"), settings=settings)], settings))
    report = (tmp_path / "t" / "report.md").read_text()
    assert "at a medium scale" in report.splitlines()[0]
    assert "a network of 78,042 parameters in place of the paper's ResNet-34" in report
    assert cells(text, "FDT")[0][1:3] == ["paper, Eq. 7", "93.13 ± 0.19"]
    assert "A group tests 17 claims, each at 95 % on its own" in report


def test_the_pages_table_of_mixings_and_its_notes_are_those_of_the_committed_records():
    report = (RESULTS / "medium" / "report.md").read_text()
    table = report.split("### Which mixing?\n\n")[1].split("\n\n")[:3]
    assert table[0].splitlines()[2].split("|")[1].strip() == "plain"
    page = (RESULTS.parent / "README.md").read_text()
    assert "\n\n".join(table) in page
