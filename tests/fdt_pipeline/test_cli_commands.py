"""The command line: its flags, what its verbs print, write and return, and what they do with bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline import FDTLoader
from fdt_pipeline.cli import main
from fdt_pipeline.shards import ShardError, load_shards, read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.task import run_task
from fdt_pipeline.sources import ArraySource
from tests.folders import LFS_POINTER, content, names, save_image
from tools.__main__ import main as tools

SUBSET = "train/data/fashion_mnist_subset"
PROGRAM = [sys.executable, "-m", "fdt_pipeline"]
FLAGS = {
    "shard": "SOURCE OUT --download --dry-run --encode --engine --json --labels --max-pixels --max-shard-bytes "
    "--on-bad --overwrite --resume --samples-per-shard --seed --size --source --split --workers",
    "convert": "IN OUT --encode --engine --json --max-pixels --on-bad --overwrite --resume --size --workers",
    "verify": "OUT --decode --json --max-pixels",
    "info": "OUT --json",
    "index": "TARS --classes --json --label --max-pixels --no-decode --out",
    "preview": "OUT --max-pixels --out --seed --superpose",
    "build": "--force",
    "doctor": "--gpu --json",
    "bench": "SHARDS --batch-size --batch-sizes --bound --classes --compare --contender --contenders --crop "
    "--device --json --list --mixing --model --plot --render --repeats --seconds --size --step --summary --timeout "
    "--widest --work --workers",
    "gpu": "OUT --commit --device --stages",
}


@pytest.fixture
def photos(tmp_path):
    """30 images of three classes, two of them bad."""
    for index in range(30):
        path = tmp_path / "photos" / "abc"[index % 3] / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), index, np.uint8)).save(path)
    (tmp_path / "photos" / "a" / "00.jpg").write_bytes(b"")
    (tmp_path / "photos" / "b" / "04.jpg").write_bytes(b"<html>")
    return tmp_path / "photos"


@pytest.mark.parametrize("verb", FLAGS)
def test_the_flags_of_every_verb_stay_what_they_are_and_its_help_has_an_example(verb, capsys):
    """People write them into scripts: adding one changes this list, removing one breaks somebody."""
    with pytest.raises(SystemExit) as caught:
        tools([verb, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    positional = re.findall(r"^  ([A-Z]+) ", printed, re.MULTILINE)
    options = sorted(set(re.findall(r"^  (--[a-z-]+)", printed, re.MULTILINE)) - {"--debug"})
    assert " ".join([*positional, *options]) == FLAGS[verb]
    assert re.search(rf"example:\n  (fdt-pipeline|python -m tools) {verb}", printed)


def test_the_package_has_all_verbs_but_those_of_tools_alone(capsys):
    for program, verbs in ((main, [*FLAGS][:-2]), (tools, FLAGS)):
        with pytest.raises(SystemExit):
            program(["--help"])
        found = capsys.readouterr().out
        assert re.findall(r"^    ([a-z]+) ", found, re.MULTILINE) == sorted(verbs, key=found.index)
        assert "example:\n  fdt-pipeline shard" in found


@pytest.mark.parametrize("arguments", [(), ("shard",), ("shard", "a", "b", "--encode", "jpeg"), ("fly",)])
def test_a_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: fdt-pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shard", "{tmp}/nowhere", "{tmp}/out"), "nowhere: no such file or folder"),
        (("shard", SUBSET, "{tmp}/file/out"), "file: is a file, expected a folder"),
        (("shard", SUBSET, "{tmp}/out", "--split", "val"), "has the splits train, test"),
        (("shard", SUBSET, "{tmp}/out", "--source", "imagenet"), "unknown kind of source 'imagenet'"),
        (("shard", SUBSET, "{tmp}/out", "--seed", "-1"), "seed must be in"),
        (("shard", "{tmp}/new", "{tmp}/out", "--download"), "to download, say what"),
        (("shard", "{tmp}/empty", "{tmp}/out"), "the folder is empty"),
        (("shard", "{tmp}/test", "{tmp}/out"), "run fdt-pipeline index {tmp}/test --out OUT"),
        (("shard", "{tmp}/sets", "{tmp}/out"), "run fdt-pipeline index {tmp}/sets/train --out OUT"),
        (("shard", "{tmp}/test/shard-000000.tar", "{tmp}/out"), "tars: webdataset's need no sharding"),
        (("shard", "{tmp}/splits", "{tmp}/out"), "splits/test: no image in it"),
        (("shard", SUBSET, "{tmp}"), "test: holds shards already"),
        (("shard", "{tmp}/splits", "{tmp}/splits/shards"), "splits/shards: lies in SOURCE, where the shards would be"),
        (("shard", "{tmp}/link", "{tmp}/splits/../splits"), "splits: lies in SOURCE"),
        (("shard", "s3://bucket/a", "s3://bucket/a/shards"), "s3://bucket/a/shards: lies in SOURCE"),
        (("convert", "{tmp}/test", "{tmp}/test", "--encode", "png"), "test: holds shards already"),
        (("verify", "{tmp}/empty"), "no shards here"),
        (("verify", "{tmp}/nowhere"), "no such folder"),
        (("info", "{tmp}/empty"), "no shards here"),
        (("info", "{tmp}/file"), "file: is a file, expected a folder"),
        (("verify", "{tmp}/file"), "file: is a file, expected a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(run, tmp_path, arguments, message):
    """No split is written either where another one of the source is faulty, or is there already."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("cat", "dog"):
        save_image(tmp_path / "splits" / "train" / name / "1.png")
    (tmp_path / "splits" / "test").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "splits")
    for name in ("test", "sets/train"):
        write_shards(ArraySource(np.zeros((1, 2, 2), np.uint8), [0]), tmp_path / name)
    before = content(tmp_path)
    done = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (done.code, done.out) == (2, "")
    [line] = done.err.splitlines()
    assert line.startswith("error: ")
    assert message.format(tmp=tmp_path) in line
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", ["folders", "labels", "npz"])
def test_a_set_beside_train_has_its_classes_and_no_others(run, tmp_path, kind):
    """Also where it has no sample of the first: its numbers are to mean what train's do."""

    def shard(split, classes, out):
        folder = source = tmp_path / split
        for name in classes:
            save_image(folder / (f"{name}/1.png" if kind == "folders" else f"{name}.png"))
        table, labels = tmp_path / f"{split}.csv", np.arange(len(classes))
        table.write_text("\n".join(["file,label", *(f"{name}.png,{name}" for name in classes)]))
        if kind == "npz":
            source = folder / "some.npz"
            np.savez(source, images=np.zeros((len(classes), 2, 2), np.uint8), labels=labels, classes=classes)
        return run("shard", source, out, *(["--labels", table] if kind == "labels" else []))

    sets = tmp_path / "sets"
    assert shard("train", ["cat", "dog", "yak"], sets / "train").code == 0
    assert shard("test", ["dog", "yak"], sets / "test").code == 0
    manifest = read_manifest(sets / "test")
    assert (manifest.classes, manifest.samples_per_class) == (("cat", "dog", "yak"), (0, 1, 1))
    assert sorted(load_shards(sets / "test")[1].tolist()) == [1, 2]
    refused = shard("other", ["dog", "eel"], sets / "other")
    assert refused.code == 2
    assert f"expected only the 3 classes of {sets}/train, got eel as well" in refused.err


def test_all_splits_are_written_verified_and_described(run, tmp_path):
    out = tmp_path / "out"
    written = [
        f"{out}/train: shards: 5, samples: 5000, classes: 10, stored as: 5000 npy",
        f"{out}/test: shards: 1, samples: 1000, classes: 10, stored as: 1000 npy",
    ]
    assert run("shard", SUBSET, out)[:2] == (0, "\n".join([*written, ""]))
    assert run("verify", out)[:2] == (0, f"{out}/train: fine\n{out}/test: fine\n")
    about = run("info", out).out
    assert f"{out}/train\n  source    fashion-mnist, split train\n  samples   5000 of 10 classes\n" in about
    assert "  images    28 x 28 x 1, raw: 5000 npy\n" in about
    assert "      9  Ankle boot       100" in about
    manifests = json.loads(run("info", out, "--json").out)
    assert list(manifests) == ["train", "test"]
    assert manifests["test"] == json.loads((out / "test" / "manifest.json").read_text())
    assert manifests["test"] == json.loads(run("info", out / "test", "--json").out)
    (out / "train" / "manifest.json").unlink()
    assert run("verify", out).code == 1, "though the last set is whole"


def test_every_option_reaches_the_manifest_and_shards_are_replaced_only_when_asked(run, tmp_path):
    """The source has no splits."""
    npz, out = tmp_path / "set.npz", tmp_path / "out"
    np.savez(npz, images=np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2), labels=np.arange(40) % 4)
    assert run("shard", npz, out, "--encode", "png", "--seed", 9, "--samples-per-shard", 25).code == 0
    manifest = read_manifest(out)
    assert (manifest.encoding, manifest.seed, manifest.samples_per_shard) == ("png", 9, 25)
    assert [item.num_samples for item in manifest.shards] == [25, 15]
    assert run("shard", npz, out, "--seed", 1).code == 2
    assert read_manifest(out) == manifest
    assert run("shard", npz, out, "--seed", 1, "--overwrite").code == 0
    assert read_manifest(out).seed == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [("", "keep"), ("--size 8", "raw"), ("--encode webp", "webp"), ("--encode keep --size 8", "keep")],
)
def test_files_are_kept_unless_another_encoding_is_asked_for(run, photos, options, expected):
    run("shard", photos, photos.with_name("out"), "--on-bad", "quarantine", *options.split())
    manifest = read_manifest(photos.with_name("out"))
    assert manifest.encoding == expected
    assert manifest.shape == ((8, 8, 3) if "--size" in options else (8, 9, 3))


def test_a_dry_run_says_what_it_would_do_and_does_nothing(run, tmp_path):
    out = tmp_path / "out"
    assert run("shard", SUBSET, out, "--dry-run", "--samples-per-shard", 600).out.splitlines() == [
        f"{out}/train: would write 5000 samples of 10 classes, raw, in 9 shards",
        f"{out}/test: would write 1000 samples of 10 classes, raw, in 2 shards",
    ]
    done = run("shard", SUBSET, out, "--split", "test", "--dry-run", "--json", "--encode", "webp")
    about = {"out": str(out), "kind": "fashion-mnist", "split": "test", "encoding": "webp"}
    assert json.loads(done.out) == [about | {"num_samples": 1000, "num_classes": 10, "num_shards": 1}]
    assert not out.exists()


def test_a_download_comes_before_the_splits_are_looked_for(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fdt_pipeline.cli.shard.download_source", lambda path, kind: shutil.copytree(SUBSET, path))
    assert run("shard", tmp_path / "new", tmp_path / "out", "--download", "--source", "fashion-mnist").code == 0
    assert read_manifest(tmp_path / "out" / "train").num_samples == 5000


def test_bad_samples_stop_the_run_and_in_quarantine_they_are_named_both_with_exit_code_1(run, photos):
    out = photos.with_name("out")
    done = run("shard", photos, out, "--workers", 1, "--samples-per-shard", 1)
    assert (done.code, done.out) == (1, "")
    assert re.match(r"error: sample .*\((a/00|b/04)\.jpg\): not an image: .*; fix or remove it", done.err)
    assert "--on-bad quarantine" in done.err
    assert names(out) == [".sharding"]
    done = run("verify", out)
    assert done.code == 1
    assert "an unfinished run, no shards yet: go on with fdt-pipeline shard" in done.out
    done = run("shard", photos, out, "--overwrite", "--on-bad", "quarantine")
    assert (done.code, done.out) == (1, f"{out}: shards: 1, samples: 28, classes: 3, stored as: 28 jpg\n")
    assert done.err.splitlines() == [
        "bad: a/00.jpg: not an image: the file has zero bytes",
        "bad: b/04.jpg: not an image: it begins with b'<html>'",
        f"{out}: 2 bad samples were left out; the manifest lists them under quarantine",
    ]
    assert run("verify", out, "--decode").code == 0
    assert "  left out  2 bad samples of the source" in run("info", out).out
    assert run("convert", out, out.with_name("png"), "--encode", "png").code == 0, "nothing more was left out"
    for path in (photos / "c").iterdir():
        path.write_bytes(b"text")
    done = run("shard", photos, out, "--overwrite", "--on-bad", "quarantine")
    assert done.code == 1
    assert "warning: " in done.err.splitlines()[-1], "a class has no sample left"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.process)])
def test_a_limit_of_pixels_is_that_of_all_verbs_that_decode_and_of_their_workers(run, tmp_path, workers):
    """Pillow's own, lowered here so that the images may be small."""
    for name in ("cat", "dog"):
        save_image(tmp_path / "photos" / name / "1.png", np.zeros((20, 20, 3), np.uint8))
        save_image(tmp_path / "photos" / name / "2.png", np.zeros((10, 10, 3), np.uint8))
    options = ("--samples-per-shard", 2, "--workers", workers)
    refused = run("shard", tmp_path / "photos", tmp_path / "out", *options, "--max-pixels", 399)
    assert refused.code == 1
    assert "Image size (400 pixels) exceeds limit of 399 pixels; if it is no bomb, allow it with --max-p" in refused.err
    assert run("shard", tmp_path / "photos", tmp_path / "out", *options, "--max-pixels", 400, "--resume").code == 0
    assert run("shard", tmp_path / "photos", tmp_path / "out-2", *options).code == 0, "it ends with the run"
    few = ("--max-pixels", "150")
    assert "400 pixels" in run("verify", tmp_path / "out", "--decode", *few).out
    assert "400 pixels" in run("convert", tmp_path / "out", tmp_path / "webp", "--encode", "webp", *few).err
    assert "400 pixels" in run("preview", tmp_path / "out", "--out", tmp_path / "a.png", *few).err
    for number in ("0", "many"):
        with pytest.raises(SystemExit):
            run("verify", tmp_path / "out", "--max-pixels", number)


def test_finished_shards_that_git_lfs_has_not_fetched_are_named_with_the_remedy(run, tmp_path):
    write_shards(ArraySource(np.zeros((2, 2, 2), np.uint8), [0, 1]), tmp_path / "out")
    (tmp_path / "out" / "shard-000000.tar").write_bytes(LFS_POINTER)
    message = "shard-000000.tar: a Git LFS pointer, not the file itself: git lfs pull"
    assert message in run("preview", tmp_path / "out", "--out", tmp_path / "a.png").err
    with pytest.raises(ShardError, match=message):
        FDTLoader(tmp_path / "out", 2)
    assert "a Git LFS pointer" in run("verify", tmp_path / "out").out


def test_json_is_what_was_written_and_verify_names_every_problem(run, photos):
    out = photos.with_name("out")
    done = run("shard", photos, out, "--on-bad", "quarantine", "--samples-per-shard", 10, "--json")
    assert done.code == 1
    [written] = json.loads(done.out)
    expected = {"out": str(out), "encoding": "keep", "num_samples": 28, "num_shards": 3, "stored_as": {"jpg": 28}}
    assert written == written | expected
    assert [(bad["position"], bad["key"]) for bad in written["quarantine"]] == [(0, "a/00.jpg"), (11, "b/04.jpg")]
    assert json.loads(run("verify", out, "--json").out) == [{"out": str(out), "problems": []}]
    problems = [f"{out}/{name}: missing" for name in ("shard-000001.idx", "shard-000002.tar")]
    (out / "shard-000001.idx").unlink()
    (out / "shard-000002.tar").unlink()
    as_json, as_text = run("verify", out, "--json"), run("verify", out)
    assert as_json.code == as_text.code == 1
    assert set(problems) <= set(json.loads(as_json.out)[0]["problems"])
    assert all(f"{problem}\n" in as_text.out for problem in problems)
    assert f"{out}: problems found: " in as_text.out


@pytest.mark.filterwarnings("default")
def test_info_of_kept_files_says_which_sizes_and_formats_there_are_and_warnings_are_one_line(run, tmp_path):
    """A gray JPEG among those in color cannot be kept."""
    source, out = tmp_path / "source", tmp_path / "out"
    for number, (name, mode) in enumerate((("cat", "RGB"), ("cat", "RGB"), ("dog", "L"))):
        (source / name).mkdir(parents=True, exist_ok=True)
        Image.new(mode, (2 + number, 2)).save(source / name / f"{number}.jpg")
    (source / "cat" / "notes.txt").touch()
    written = f"{out}: shards: 1, samples: 3, classes: 2, stored as: 2 jpg, 1 png\n"
    warning = f"warning: {source}: ignored 1 files that are no images: cat/notes.txt\n"
    assert run("shard", source, out) == (0, written, warning)
    assert "  images    sizes differ, 3 channels, keep: 2 jpg, 1 png\n" in run("info", out).out


@pytest.mark.process
def test_both_splits_are_converted_and_timm_is_told_their_names(run, tmp_path):
    raw, webp, back = (tmp_path / name for name in ("raw", "webp", "back"))
    run("shard", SUBSET, raw)
    assert run("convert", raw, webp, "--encode", "webp").code == 0
    assert [read_manifest(webp / split).encoding for split in ("train", "test")] == ["webp", "webp"]
    splits = json.loads((webp / "_info.json").read_text())["splits"]
    assert [split["num_samples"] for split in splits.values()] == [5000, 1000]
    assert run("convert", webp, back, "--encode", "raw", "--json").code == 0
    assert content(back) == content(raw), "without _info.json: timm cannot read raw images"
    assert run("convert", raw / "train", tmp_path / "one", "--encode", "png", "--size", 14).code == 0
    assert read_manifest(tmp_path / "one").shape == (14, 14, 1)


def test_a_log_gets_lines_with_rate_and_time_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fdt_pipeline.shards.progress.LOG_SECONDS", 0.0)
    done = run("shard", SUBSET, tmp_path, "--split", "test", "--samples-per-shard", 250, "--workers", 1)
    lines = done.err.splitlines()
    assert len(lines) == 4
    assert "500/1000 [" in lines[1]
    assert "samples/s]" in lines[1]


def test_an_interrupted_run_ends_at_once_and_leaves_no_process(tmp_path):
    command = [*PROGRAM, "shard", SUBSET, tmp_path, "--split", "train", "--encode", "png", "--workers", "2"]
    command += ["--samples-per-shard", "2500"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("*.tmp")):  # a worker has begun to write
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.decode() == f"\ninterrupted: {tmp_path}: no unfinished run is kept there\n"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("before", "option"), [("", "--resume"), ("--overwrite", "--resume in place of --overwrite")])
def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on(run, tmp_path, monkeypatch, before, option):
    command = ["shard", SUBSET, tmp_path / "out", "--split", "test", "--samples-per-shard", 250, "--workers", 1]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def after_two_shards(task, work):
        return interrupt() if task.number == 2 else run_task(task, work)

    for replaced, by, flags, kept in (
        ("cli.shard.open_source", interrupt, [], "nothing was written"),
        ("shards.running.run_task", after_two_shards, before.split(), "what is finished is kept"),
        ("shards.staging.Staging.publish", interrupt, ["--resume"], "what is finished is kept"),
        ("shards.staging.Staging.finished", interrupt, ["--resume"], "what is finished is kept"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"fdt_pipeline.{replaced}", by)
            done = run(*command, *flags)
        assert (done.code, done.out) == (130, "")
        assert done.err.startswith("\ninterrupted: ")
        assert kept in done.err
        assert by is interrupt or done.err.endswith(f"the same command with {option} goes on\n")
    assert run(*command, "--resume").code == 0
    assert verify_shards(tmp_path / "out") == []


def test_names_that_the_terminal_cannot_show_are_escaped_and_a_closed_pipe_is_no_error(tmp_path):
    """Standard output is closed before anything is printed, as when `head` has read enough."""
    write_shards(ArraySource(np.zeros((1, 2, 2), np.uint8), [0], ["\u732b"]), tmp_path)
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [*PROGRAM, "info", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **plain}, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u732b" in result.stdout
    piped = f"{' '.join(command)} --json | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("0\n", "")
