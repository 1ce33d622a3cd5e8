"""`python -m train`: from image files to a robustness table, on a subset of Fashion-MNIST that comes with the code.

Two rows of a table as `reproduce` makes it, so the same command goes on after Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path

from fdt_pipeline.cli.preview import Samples, page, superposed_entries
from fdt_pipeline.shards import read_manifest, verify_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.storage import open_folder
from train.files import check_folder, write_json, write_text
from train.plots import draw_paths, save_figure
from train.reproduce.paper import Row
from train.reproduce.record import read_records
from train.reproduce.running import run_rows
from train.reproduce.settings import SPLITS, Settings, shard_small
from train.robust_accuracy import format_table

DATASET = "fashion-mnist"
COLUMNS = {"plain": "plain", "tn_fdt": "TN + FDT"}
SETTINGS = Settings("demo", attack_images=1000)
QUICK = Settings("demo", epochs=1, attack_images=100, attack_steps=5)
PAGE_DPI = 100  # of `page`, which places images by pixels


def run_demo(out: Path, settings: Settings, seed: int = 0, device_name: str | None = None) -> str:
    """Runs what is not there yet; returns the table. ValueError where `out` holds a demo with other settings."""
    check_folder(out)
    shards = out / "shards"
    shard_small(None, DATASET, shards)
    for split in SPLITS:
        _verify(shards / split)
    _draw_superposed(shards / "train", seed, out / "batch.png")
    rows = [Row(DATASET, "demo", column) for column in COLUMNS]
    if diverged := run_rows(rows, [seed], settings, {}, lambda _: shards, out, device_name):
        raise RuntimeError(f"{' and '.join(diverged)} diverged: there is no table")
    records = {record.row.column: record for record in read_records(out) if record.seed == seed}
    robustness = {name: records[column].robustness for column, name in COLUMNS.items()}
    table = format_table(robustness)
    paths = {name: [found] for name, found in robustness.items()}
    draw_paths(paths, settings.eps_values, "Accuracy along the attack's path", out / "robustness.png")
    write_text(out / "table.md", table)
    write_json(out / "results.json", {"models": {name: records[column].content for column, name in COLUMNS.items()}})
    return table


def _verify(folder: Path) -> None:
    with progress_bar(f"verify {folder.name}", "shards", always=True) as progress:
        problems = verify_shards(folder, progress=progress)
    if problems:
        raise ValueError(f"{folder} is damaged: {problems[0]} ({len(problems)} in all). Delete it and run again")


def _draw_superposed(shards: Path, seed: int, path: Path) -> None:
    """The page of `fdt-pipeline preview --superpose`."""
    folder = open_folder(shards)
    entries = superposed_entries(Samples(folder, read_manifest(folder)), seed, str(shards))
    head = ["Superposed training images, each with K and the largest weights of its soft target"]
    save_figure(page(head, entries, columns=3, characters=36), path, dpi=PAGE_DPI)
