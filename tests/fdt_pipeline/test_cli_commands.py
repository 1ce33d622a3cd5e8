"""The command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.cli import main, shard
from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tools.__main__ import main as tools

SUBSET = "train/data/fashion_mnist_subset"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """A source without splits."""
    path = tmp_path / "set.npz"
    np.savez(path, images=np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2), labels=np.arange(40) % 4)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_all_splits_are_written_verified_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("shard", SUBSET, out) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/train: shards: 5, samples: 5000, classes: 10, stored as: 5000 npy",
        f"{out}/test: shards: 1, samples: 1000, classes: 10, stored as: 1000 npy",
    ]
    assert run("verify", out) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}/train: fine", f"{out}/test: fine"]
    assert run("info", out) == 0
    told = capsys.readouterr().out
    assert f"{out}/train\n  source    fashion-mnist, split train\n  samples   5000 of 10 classes\n" in told
    assert "  images    28 x 28 x 1, raw: 5000 npy\n" in told
    assert "      9  Ankle boot       100" in told
    assert run("info", out, "--json") == 0
    manifests = json.loads(capsys.readouterr().out)
    assert list(manifests) == ["train", "test"]
    assert manifests["test"] == json.loads((out / "test" / "manifest.json").read_text())
    assert run("info", out / "test", "--json") == 0
    assert json.loads(capsys.readouterr().out) == manifests["test"]
    (out / "train" / "manifest.json").unlink()
    assert run("verify", out) == 1, "though the last set is whole"


def test_every_option_reaches_the_manifest(tmp_path: Path, npz: Path) -> None:
    assert run("shard", npz, tmp_path / "out", "--encode", "png", "--seed", 9, "--samples-per-shard", 25) == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.encoding, manifest.seed, manifest.samples_per_shard) == ("png", 9, 25)
    assert [item.num_samples for item in manifest.shards] == [25, 15]


def test_shards_are_replaced_only_when_asked(tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("shard", npz, out) == 0
    assert run("shard", npz, out, "--seed", 1) == 2
    assert "error: " in capsys.readouterr().err
    assert read_manifest(out).seed == 0
    assert run("shard", npz, out, "--seed", 1, "--overwrite") == 0
    assert read_manifest(out).seed == 1


def test_no_split_is_written_if_one_of_them_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("shard", SUBSET, tmp_path / "test", "--split", "test") == 0
    assert run("shard", SUBSET, tmp_path) == 2
    assert f"error: {tmp_path}/test: holds shards already" in capsys.readouterr().err
    assert not (tmp_path / "train").exists()


def test_no_split_is_written_if_one_of_the_source_is_faulty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source" / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "source" / "train" / "cat" / "1.png")
    (tmp_path / "source" / "test").mkdir()
    assert run("shard", tmp_path / "source", tmp_path / "out") == 2
    assert "source/test: no image in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    write_shards(ArraySource(np.zeros((1, 2, 2), np.uint8), [0], ["\u732b"]), tmp_path)
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
    }
    command = [sys.executable, "-m", "fdt_pipeline", "info", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u732b" in result.stdout


def test_verify_prints_every_problem_and_returns_1(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("shard", npz, tmp_path / "out", "--samples-per-shard", 10)
    capsys.readouterr()
    (tmp_path / "out" / "shard-000001.idx").unlink()
    (tmp_path / "out" / "shard-000002.tar").unlink()
    assert run("verify", tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "shard-000001.idx: missing\n" in out
    assert "shard-000002.tar: missing\n" in out
    assert "out: problems found: " in out


def test_info_of_images_of_different_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in (2, 3):
        (tmp_path / "source" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size)).save(tmp_path / "source" / "cat" / f"{size}.png")
    assert run("shard", tmp_path / "source", tmp_path / "out", "--source", "folder") == 0
    assert run("info", tmp_path / "out") == 0
    assert "  images    sizes differ, 3 channels, keep: 2 png\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source" / "cat").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "source" / "cat" / "1.png")
    (tmp_path / "source" / "cat" / "notes.txt").touch()
    assert run("shard", tmp_path / "source", tmp_path / "out") == 0
    folder = tmp_path / "source"
    assert capsys.readouterr().err == f"warning: {folder}: ignored 1 files that are no images: cat/notes.txt\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shard", "{tmp}/nowhere", "{tmp}/out"), "nowhere: no such file or folder"),
        (("shard", SUBSET, "{tmp}/file/out"), "file: is a file, expected a folder"),
        (("shard", SUBSET, "{tmp}/out", "--split", "val"), "has the splits train, test"),
        (("shard", SUBSET, "{tmp}/out", "--source", "imagenet"), "unknown kind of source 'imagenet'"),
        (("shard", SUBSET, "{tmp}/out", "--seed", "-1"), "seed must be in"),
        (("shard", "{tmp}/new", "{tmp}/out", "--download"), "to download, say what"),
        (("shard", "{tmp}/empty", "{tmp}/out"), "no data set that is known"),
        (("verify", "{tmp}/empty"), "no shards here"),
        (("verify", "{tmp}/nowhere"), "no such folder"),
        (("info", "{tmp}/empty"), "no shards here"),
        (("info", "{tmp}/file"), "file: is a file, expected a folder"),
        (("verify", "{tmp}/file"), "file: is a file, expected a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert run(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("arguments", [(), ("shard",), ("shard", "a", "b", "--encode", "jpeg"), ("fly",)])
def test_a_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: fdt-pipeline" in capsys.readouterr().err


VERBS = ("shard", "index", "verify", "info", "preview", "convert", "build", "doctor")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_has_an_example_to_copy(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*([verb] if verb else []), "--help")
    assert caught.value.code == 0
    assert f"example:\n  fdt-pipeline {verb}" in capsys.readouterr().out


def test_tools_has_the_same_verbs_and_bench(tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools(["shard", str(npz), str(tmp_path / "out")]) == 0
    with pytest.raises(SystemExit):
        tools(["--help"])
    found = capsys.readouterr().out
    assert all(f"\n    {verb} " in found for verb in (*VERBS, "bench"))


def test_an_interruption_before_anything_is_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shard, "open_source", interrupt)
    assert run("shard", SUBSET, tmp_path) == 130
    assert capsys.readouterr() == ("", "\ninterrupted: nothing was written\n")


def test_a_download_comes_before_the_splits_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(path: Path, kind: str) -> None:
        path.mkdir()
        for file in Path(SUBSET).iterdir():
            (path / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(shard, "download_source", download)
    assert run("shard", tmp_path / "new", tmp_path / "out", "--download", "--source", "fashion-mnist") == 0
    assert read_manifest(tmp_path / "out" / "train").num_samples == 5000


def test_the_program_runs_and_a_closed_pipe_is_no_error(tmp_path: Path, npz: Path) -> None:
    """Standard output is closed before anything is printed, as when `head` has read enough."""
    run("shard", npz, tmp_path / "out")
    command = f"{sys.executable} -m fdt_pipeline info {tmp_path}/out --json | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("0\n", "")
