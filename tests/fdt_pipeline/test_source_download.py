"""Downloads go through torchvision; here it is replaced by one that has the files at hand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fdt_pipeline.sources import open_source


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, name: str, dataset: Any) -> None:
    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    setattr(datasets, name, dataset)
    package.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_a_download_is_put_into_the_source_folder_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fashion_mnist(root: str, train: bool, download: bool) -> None:
        asked.append((train, download))
        shutil.copytree("train/data/fashion_mnist_subset", f"{root}/FashionMNIST/raw", dirs_exist_ok=True)

    fake_torchvision(monkeypatch, "FashionMNIST", fashion_mnist)
    assert len(open_source(tmp_path / "new", "fashion-mnist", "test", download=True)) == 1000
    assert asked == [(True, True), (False, True)]


def test_svhn_is_asked_for_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fake_torchvision(monkeypatch, "SVHN", lambda root, split, download: asked.append(split))
    with pytest.raises(ValueError, match="no svhn here"):
        open_source(tmp_path, "svhn", "train", download=True)
    assert asked == ["train", "test"]


@pytest.mark.parametrize("kind", [None, "folder"])
def test_a_download_needs_an_official_kind(tmp_path: Path, kind: str | None) -> None:
    with pytest.raises(ValueError, match=f"expected --source to be one of fashion-mnist, .*svhn, got {kind}"):
        open_source(tmp_path, kind, download=True)


def test_a_failed_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no network")

    fake_torchvision(monkeypatch, "CIFAR10", fail)
    with pytest.raises(OSError, match=r"could not download cifar10 to .*: no network; fetch the files by hand"):
        open_source(tmp_path, "cifar10", download=True)


def test_without_torchvision_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        open_source(tmp_path, "cifar10", download=True)
