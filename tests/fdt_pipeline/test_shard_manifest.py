"""manifest.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdt_pipeline.shards import Manifest, ShardError, read_manifest, shard_sets, write_shards
from fdt_pipeline.sources import ArraySource

SOURCE = ArraySource(np.arange(7 * 2 * 3 * 3, dtype=np.uint8).reshape(7, 2, 3, 3), [0, 0, 0, 0, 1, 1, 1], ["a", "b"])


def test_it_tells_what_was_written(tmp_path: Path) -> None:
    manifest = write_shards(SOURCE, tmp_path, seed=5, samples_per_shard=4)
    assert manifest == read_manifest(tmp_path)
    assert (manifest.kind, manifest.split, manifest.classes) == ("arrays", None, ("a", "b"))
    assert (manifest.num_samples, manifest.samples_per_class) == (7, (4, 3))
    assert (manifest.shape, manifest.channels, manifest.encoding) == ((2, 3, 3), 3, "raw")
    assert (manifest.seed, manifest.samples_per_shard, manifest.format_version) == (5, 4, 1)
    assert [(shard.name, shard.num_samples) for shard in manifest.shards] == [
        ("shard-000000.tar", 4),
        ("shard-000001.tar", 3),
    ]
    np.testing.assert_allclose(manifest.mean, SOURCE.images.mean((0, 1, 2)))
    np.testing.assert_allclose(manifest.std, SOURCE.images.std((0, 1, 2)))


def test_it_is_frozen(tmp_path: Path) -> None:
    manifest = write_shards(SOURCE, tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.seed = 1  # type: ignore[misc]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        read_manifest(tmp_path / "nowhere")


def test_a_folder_without_shards_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shards here: run python -m tools shard SOURCE"):
        read_manifest(tmp_path)


def test_a_folder_of_sets_names_them(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path / "train")
    write_shards(SOURCE, tmp_path / "test")
    with pytest.raises(ValueError, match=f"in its subfolders: choose one of {tmp_path}/train, {tmp_path}/test"):
        read_manifest(tmp_path)
    assert shard_sets(tmp_path) == (tmp_path / "train", tmp_path / "test")
    assert shard_sets(tmp_path / "test") == (tmp_path / "test",)


def test_shards_without_a_manifest_are_of_an_interrupted_run(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"shards without manifest.json: writing them was interrupted"):
        read_manifest(tmp_path)


def changed(**fields: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **fields})


def without(field: str) -> Callable[[str], str]:
    return lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != field})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-5], "Expecting"),
        (lambda text: "[1]", "expected a JSON object"),
        (lambda text: "\udcff", "decode"),
        (changed(format_version=2), "expected format_version 1, got 2; shard the source again"),
        (without("format_version"), "expected format_version 1, got None"),
        (without("classes"), "missing fields: classes; unknown: none"),
        (changed(extra=1), "missing fields: none; unknown: extra"),
        (changed(num_samples="7"), "field num_samples: expected int, got '7'"),
        (changed(seed=True), "field seed: expected int, got True"),
        (changed(classes="ab"), "field classes: expected list, got 'ab'"),
        (changed(shards=[1]), "field shards: "),
        (changed(shards=[{"name": "x"}]), "missing fields: index_sha256, num_bytes"),
        (changed(num_samples=8), "num_samples is 8, but samples_per_class sum to 7 and the shards to 7"),
        (changed(classes=["a"]), "1 classes, but 2 samples_per_class"),
        (changed(channels=1), "channels is 1, but mean has 3 and std 3 values"),
        (changed(shape=[2, 3]), r"shape must be \[h w 3\] or null, got \[2, 3\]"),
        (lambda text: text.replace("shard-000000.tar", "../shard-000000.tar"), "expected a shard name"),
    ],
)
def test_a_broken_manifest_is_a_shard_error(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    write_shards(SOURCE, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(ShardError, match=rf"manifest.json: .*{message}"):
        read_manifest(tmp_path)


def test_json_round_trips_mixed_sizes_and_splits(tmp_path: Path) -> None:
    manifest = dataclasses.replace(write_shards(SOURCE, tmp_path), shape=None, split="train")
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    assert isinstance(manifest, Manifest)
