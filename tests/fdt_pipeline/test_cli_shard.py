"""The verbs that write shards: their flags, what they print and return, and what they do with bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.cli import main
from fdt_pipeline.shards import read_manifest, verify_shards
from fdt_pipeline.shards.record import Record
from fdt_pipeline.shards.staging import Staging
from fdt_pipeline.shards.task import Task, Work, run_task
from tests.folders import content, names
from tests.peers import peer
from tools.__main__ import main as tools

SUBSET = "train/data/fashion_mnist_subset"
PROGRAM = [sys.executable, "-m", "fdt_pipeline"]

FLAGS = {
    "shard": "SOURCE OUT --download --dry-run --encode --engine --json --max-shard-bytes --on-bad --overwrite --resume "
    "--samples-per-shard --seed --size --source --split --workers",
    "convert": "IN OUT --encode --engine --json --on-bad --overwrite --resume --size --workers",
    "verify": "OUT --decode --json",
    "info": "OUT --json",
    "index": "TARS --json",
    "preview": "OUT --out --seed --superpose",
    "build": "--force",
    "doctor": "--gpu --json",
    "bench": "SHARDS --batch-size --batch-sizes --bound --classes --compare --contender --contenders --device "
    "--json --list --mixing --model --plot --render --repeats --seconds --size --timeout --widest --work "
    "--workers",
}


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images of three classes, two of them bad."""
    for index in range(30):
        path = tmp_path / "photos" / "abc"[index % 3] / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), index, np.uint8)).save(path)
    (tmp_path / "photos" / "a" / "00.jpg").write_bytes(b"")
    (tmp_path / "photos" / "b" / "04.jpg").write_bytes(b"<html>")
    return tmp_path / "photos"


@pytest.mark.parametrize("verb", FLAGS)
def test_the_flags_of_every_verb_stay_what_they_are(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """People write them into scripts: adding one changes this list, removing one breaks somebody."""
    with pytest.raises(SystemExit):
        tools([verb, "--help"])
    printed = capsys.readouterr().out
    positional = re.findall(r"^  ([A-Z]+) ", printed, re.MULTILINE)
    options = sorted(set(re.findall(r"^  (--[a-z-]+)", printed, re.MULTILINE)) - {"--debug"})
    assert " ".join([*positional, *options]) == FLAGS[verb]


def test_bad_samples_stop_the_run_with_exit_code_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.with_name("out")
    assert run("shard", photos, out, "--workers", 1) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: sample ")
    assert re.search(r"\((a/00|b/04)\.jpg\): not an image: .*; fix or remove it", captured.err)
    assert "--on-bad quarantine" in captured.err
    assert names(out) == []


def test_in_quarantine_they_are_told_and_the_exit_code_is_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.with_name("out")
    assert run("shard", photos, out, "--on-bad", "quarantine") == 1
    captured = capsys.readouterr()
    assert captured.out == f"{out}: shards: 1, samples: 28, classes: 3, stored as: 28 jpg\n"
    assert captured.err.splitlines() == [
        "bad: a/00.jpg: not an image: the file has zero bytes",
        "bad: b/04.jpg: not an image: it begins with b'<html>'",
        f"{out}: 2 bad samples were left out; the manifest lists them under quarantine",
    ]
    for path in (photos / "c").iterdir():
        path.write_bytes(b"text")
    assert run("shard", photos, out.with_name("less"), "--on-bad", "quarantine") == 1
    assert "warning: " in capsys.readouterr().err.splitlines()[-1], "a class has no sample left"
    assert run("verify", out, "--decode") == 0
    assert run("info", out) == 0
    assert "  left out  2 bad samples of the source" in capsys.readouterr().out
    assert run("convert", out, out.with_name("png"), "--encode", "png") == 0, "nothing more was left out"


def test_shard_and_info_say_what_was_stored_as_what(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gray JPEG among those in color cannot be kept."""
    for name in ("a/00.jpg", "b/04.jpg"):
        Image.new("L", (9, 8)).save(photos / name)
    out = photos.with_name("out")
    assert run("shard", photos, out) == 0
    assert capsys.readouterr().out == f"{out}: shards: 1, samples: 30, classes: 3, stored as: 28 jpg, 2 png\n"
    assert run("info", out) == 0
    assert "  images    8 x 9 x 3, keep: 28 jpg, 2 png\n" in capsys.readouterr().out


def test_json_tells_what_was_written(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.with_name("out")
    assert run("shard", photos, out, "--on-bad", "quarantine", "--json") == 1
    [told] = json.loads(capsys.readouterr().out)
    assert told["stored_as"] == {"jpg": 28}
    assert (told["out"], told["encoding"], told["num_samples"], told["num_shards"]) == (str(out), "keep", 28, 1)
    assert [bad["key"] for bad in told["quarantine"]] == ["a/00.jpg", "b/04.jpg"]
    assert run("verify", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"out": str(out), "problems": []}]
    (out / "shard-000000.idx").unlink()
    assert run("verify", out, "--json") == 1
    assert json.loads(capsys.readouterr().out)[0]["problems"] == [f"{out}/shard-000000.idx: missing"]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("shard", SUBSET, out, "--dry-run", "--samples-per-shard", 600) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/train: would write 5000 samples of 10 classes, raw, in 9 shards",
        f"{out}/test: would write 1000 samples of 10 classes, raw, in 2 shards",
    ]
    assert run("shard", SUBSET, out, "--split", "test", "--dry-run", "--json", "--encode", "webp") == 0
    [plan] = json.loads(capsys.readouterr().out)
    assert plan == {
        "out": str(out),
        "kind": "fashion-mnist",
        "split": "test",
        "encoding": "webp",
        "num_samples": 1000,
        "num_classes": 10,
        "num_shards": 1,
    }
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "keep"),
        (["--size", "8"], "raw"),
        (["--encode", "webp"], "webp"),
        (["--encode", "keep", "--size", "8"], "keep"),
    ],
)
def test_files_are_kept_unless_told_otherwise(photos: Path, options: list[str], expected: str) -> None:
    out = photos.with_name("out")
    run("shard", photos, out, "--on-bad", "quarantine", *options)
    manifest = read_manifest(out)
    assert manifest.encoding == expected
    assert manifest.shape == ((8, 8, 3) if "--size" in options else (8, 9, 3))


@pytest.mark.process
def test_a_killed_run_goes_on_with_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two splits: what is finished of the first stays, and the second is begun."""
    command = [
        sys.executable,
        "-m",
        "fdt_pipeline",
        "shard",
        SUBSET,
        str(tmp_path / "out"),
        "--encode",
        "png",
        "--resume",
    ]
    command += ["--samples-per-shard", "20", "--workers", "2"]
    for seconds in (0.7, 0.9, 1.1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 2
    assert run("shard", SUBSET, tmp_path / "whole", "--encode", "png", "--samples-per-shard", 20) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_unfinished_run_is_named_with_what_to_do(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.with_name("out")
    run("shard", photos, out, "--samples-per-shard", 1, "--workers", 1)
    assert names(out) == [".sharding"]
    assert run("shard", photos, out) == 2
    assert "holds an unfinished run: go on with --resume, or start over with --overwrite" in capsys.readouterr().err
    assert run("verify", out) == 1
    assert "an unfinished run, no shards yet: go on with fdt-pipeline shard" in capsys.readouterr().out
    assert run("shard", photos, out, "--resume", "--samples-per-shard", 1, "--on-bad", "quarantine") == 1
    assert verify_shards(out) == []


@pytest.mark.process
def test_both_splits_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("shard", SUBSET, tmp_path / "raw")
    assert run("convert", tmp_path / "raw", tmp_path / "webp", "--encode", "webp") == 0
    assert [read_manifest(tmp_path / "webp" / split).encoding for split in ("train", "test")] == ["webp", "webp"]
    assert run("convert", tmp_path / "webp", tmp_path / "back", "--encode", "raw", "--json") == 0
    assert content(tmp_path / "back") == content(tmp_path / "raw")
    assert run("convert", tmp_path / "raw", tmp_path / "webp", "--encode", "png") == 2
    assert run("convert", tmp_path / "raw" / "train", tmp_path / "one", "--encode", "png", "--size", 14) == 0
    assert read_manifest(tmp_path / "one").shape == (14, 14, 1)


def test_a_log_gets_lines_with_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("fdt_pipeline.shards.progress.LOG_SECONDS", 0.0)
    assert run("shard", SUBSET, tmp_path, "--split", "test", "--samples-per-shard", 250, "--workers", 1) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "500/1000 [" in lines[1]
    assert "samples/s]" in lines[1]


def test_an_interrupted_run_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fdt_pipeline",
        "shard",
        SUBSET,
        str(tmp_path),
        "--split",
        "train",
        "--encode",
        "png",
    ]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--samples-per-shard", "2500"], start_new_session=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("*.tmp")):  # a worker has begun to write
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors.decode()) == (
        130,
        f"\ninterrupted: {tmp_path}: nothing was finished, so nothing is kept\n",
    )
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("before", "option"), [("", "--resume"), ("--overwrite", "--resume in place of --overwrite")])
def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str, option: str
) -> None:
    command = ["shard", SUBSET, tmp_path / "out", "--split", "test", "--samples-per-shard", 250, "--workers", 1]

    def interrupted(self: Staging, *arguments: object) -> None:
        raise KeyboardInterrupt

    def after_two_shards(task: Task, work: Work) -> Record:
        if task.number == 2:
            raise KeyboardInterrupt
        return run_task(task, work)

    with monkeypatch.context() as patch:
        patch.setattr("fdt_pipeline.shards.running.run_task", after_two_shards)
        assert run(*command, *before.split()) == 130
    kept = f"{tmp_path}/out: 500 of 1000 samples are finished and kept: the same command with {option} goes on"
    assert capsys.readouterr() == ("", f"\ninterrupted: {kept}\n")
    with monkeypatch.context() as patch:
        patch.setattr("fdt_pipeline.shards.staging.Staging.publish", interrupted)
        assert run(*command, "--resume") == 130
    assert "out: 1000 of 1000 samples are finished and kept: " in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("fdt_pipeline.shards.staging.Staging.finished", interrupted)
        assert run(*command, "--resume") == 130
    assert "out: what is finished is kept: the same command with --resume goes on" in capsys.readouterr().err
    assert run(*command, "--resume") == 0
    assert verify_shards(tmp_path / "out") == []


@pytest.mark.filterwarnings("ignore")  # of timm's and webdataset's own
@pytest.mark.peer
def test_timm_reads_what_the_command_wrote_by_its_splits(photos: Path, tmp_path: Path) -> None:
    data = peer("timm.data")
    for split in ("train", "val"):
        for name in ("05", "07", "09"):
            source = photos / "abc"[int(name) % 3] / f"{name}.jpg"
            path = tmp_path / "splits" / split / "abc"[int(name) % 3] / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
    out = tmp_path / "out"
    assert run("shard", tmp_path / "splits", out) == 0
    for root, split in ((out, "train"), (out, "test"), (out / "test", "test")):
        dataset = data.create_dataset("wds/photos", root=str(root), split=split, is_training=False, batch_size=2)
        assert sorted(label for _, label in dataset) == [0, 1, 2]
    assert run("shard", SUBSET, tmp_path / "raw") == 0
    assert not list((tmp_path / "raw").rglob("_info.json"))
