"""Which folders of image files are splits, which are classes, and where the labels are in a file instead.

class = subfolder; split = subfolder train, test, val, ... above the classes, by the words of its name. Samples are
sorted by path; classes by name, or as numbers if all are numbers.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from .files import Files, LocalFiles
from .image_folder import NOT_IMAGES, ImageFolder, common_channels, extension, may_be_image
from .label_file import LABEL_EXTENSIONS, LabelFile, label_file, read_labels
from .source import Found, few, ordered_classes

_SPLIT_WORDS = {
    "train": {"train", "training"},
    "test": {"test", "testing"},
    "val": {"val", "valid", "validation", "eval"},
}


class Layout(NamedTuple):
    """splits: split -> folder, {} if the folders are the classes; label_files: split -> the file beside its images that
    has their labels; left_out: folders that belong to no split, with the reason."""

    splits: dict[str, str]
    label_files: dict[str, str]
    left_out: list[str]


def find(path: Path, kind: str, asked: bool) -> Found | None:
    return find_images(LocalFiles(path), asked)


def find_images(files: Files, asked: bool) -> Found | None:
    """asked: a folder in it is enough; else a file in one must be an image by its extension."""
    names, sets = _apart_from_shards(files.names())
    extensions = Image.registered_extensions()
    if not any("/" in name and (asked or extension(name) in extensions) for name in names):
        return None
    layout = _layout(files.url, names)
    layout.left_out.extend(f"{folder} (shards)" for folder in sets)
    return Found("folder", tuple(layout.splits), partial(_open, files, names, layout))


def find_labelled(files: Files, labels: str) -> Found:
    """Images in one folder, or in a tree that says nothing of classes, and a file of their labels."""
    return Found("folder", (), lambda _: _open_labelled(files, label_file(labels)))


def _open(files: Files, names: list[str], layout: Layout, split: str | None) -> ImageFolder:
    # The train split's classes are those of every split, so that a label means the same in all.
    train = layout.splits.get("train", "")
    classes = _classes(_url(files.url, train), _below(names, train))
    _check_loose(files.url, names)
    if split in (None, "train"):
        _warn_of_layout(files.url, layout, classes)
        if len(classes) == 1:
            _warn_of_one_class(_url(files.url, train), _below(names, train), classes[0])
    folder = layout.splits[split] if split else ""
    where, here = _url(files.url, folder), _below(names, folder)
    if split in layout.label_files:
        file = LabelFile(f"{where}/{layout.label_files[split]}")
        images, listed = _images_with_labels(where, here, file)
        labels: Iterable[str] = listed
        if unknown := ordered_classes(set(listed) - set(classes)):
            raise ValueError(f"{file.url}: expected only the classes of the train split, got {few(unknown)} as well")
    else:
        _check_names(where, here, classes)
        images = [name for name in here if may_be_image(name)]
        labels = (name.partition("/")[0] for name in images)
        _warn_of_others(where, here)
    # All splits must agree on the number of channels, so each looks at all.
    folders = tuple(f"{name}/" for name in layout.splits.values()) or ("",)
    channels = common_channels(files, (name for name in names if name.startswith(folders) and may_be_image(name)))
    return ImageFolder(files, folder, images, labels, classes, split=split, channels=channels)


def _open_labelled(files: Files, file: LabelFile) -> ImageFolder:
    names, sets = _apart_from_shards(files.names())
    images, labels = _images_with_labels(files.url, names, file)
    if sets:
        warnings.warn(f"{files.url}: left out {few(sets)} (shards)", stacklevel=4)
    channels = common_channels(files, images)
    return ImageFolder(files, "", images, labels, ordered_classes(labels), split=None, channels=channels)


def _images_with_labels(where: str, names: list[str], file: LabelFile) -> tuple[list[str], list[str]]:
    own_name = os.path.relpath(file.url, where)
    others = [name for name in names if name != own_name]
    images = [name for name in others if may_be_image(name)]
    if not images:
        raise ValueError(f"{where}: no image in it; give the folder of the images that {file.url} names")
    labels = read_labels(file, where, images)
    _warn_of_others(where, others)
    return images, labels


def _apart_from_shards(names: list[str]) -> tuple[list[str], list[str]]:
    """(names that lie in no folder of shards, the folders of shards): a manifest.json beside tars or their indexes. A
    folder that holds no image but those in shards is left out whole."""
    manifests = {os.path.dirname(name) for name in names if os.path.basename(name) == "manifest.json"} - {""}
    with_tars = {os.path.dirname(name) for name in names if manifests and extension(name) in (".tar", ".idx")}
    sets = tuple(f"{folder}/" for folder in sorted(manifests & with_tars))
    if not sets:
        return names, []
    images = [name for name in names if may_be_image(name) and not name.startswith(sets)]
    with_images = {folder for name in images for folder in PurePosixPath(name).parents}
    wholes = (
        [folder for folder in (path, *path.parents[:-1]) if folder not in with_images][-1]
        for path in map(PurePosixPath, sets)
    )
    left_out = list(dict.fromkeys(map(str, wholes)))
    return [name for name in names if not name.startswith(tuple(f"{folder}/" for folder in left_out))], left_out


def _layout(url: str, names: list[str]) -> Layout:
    """Folders are splits only if one is train by its name, and another is test or val, or no other is there.

    A test or val whose images have no label, in no folder of a class and in no file, is no split. val (valid,
    validation, eval) is the split "test" if there is no other; otherwise it is a split of its own.
    """
    folders = _folders(names)
    by_split = {split: [name for name in folders if _split_of(name) == split] for split in _SPLIT_WORDS}
    strangers = [name for name in folders if _split_of(name) is None]
    if not by_split["train"] or (strangers and not by_split["test"] and not by_split["val"]):
        return Layout({}, {}, [])
    for same in by_split.values():
        if len(same) > 1:
            raise ValueError(f"{url}/{same[0]}: {same[1]} is the same split; merge them or rename one")
    splits = {split: same[0] for split, same in by_split.items() if same}
    classes = set(_folders(_below(names, splits["train"])))
    label_files, left_out = {}, [f"{name} (no split by its name)" for name in strangers]
    for split in [split for split in splits if split != "train"]:
        here = _below(names, splits[split])
        if _has_classes(here, classes):
            continue
        tables = [name for name in here if "/" not in name and extension(name) in LABEL_EXTENSIONS]
        if len(tables) == 1:
            [label_files[split]] = tables
        else:
            left_out.append(
                f"{splits.pop(split)} (its images have no labels: neither class folders nor one label file)"
            )
    if "val" in splits and "test" not in splits:
        if by_split["test"]:
            left_out.append(f"so that {splits['val']} is the split test")
        for found in (splits, label_files):
            if "val" in found:
                found["test"] = found.pop("val")
    return Layout(splits, label_files, left_out)


def _split_of(folder: str) -> str | None:
    """The one split that the words of its name say: seg_train, Train-png, "Training Data", val2017, TestImages."""
    words = set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", folder).lower()))
    said = [split for split, known in _SPLIT_WORDS.items() if words & known]
    return said[0] if len(said) == 1 else None


def _has_classes(here: list[str], classes: set[str]) -> bool:
    """Whether the images of a split lie in folders of classes; images in a single other folder, or in none, do not."""
    folders = _folders(here)
    return len(folders) > 1 or bool(classes & set(folders)) or not any(map(may_be_image, here))


def _classes(where: str, names: list[str]) -> tuple[str, ...]:
    """The class folders; ValueError if there are none, or if the classes seem to be folders further down."""
    classes = ordered_classes(_folders(names))
    if not classes:
        raise ValueError(
            f"{where}: expected a subfolder of images for each class, got none; if a file has the labels, name it with "
            "--labels FILE"
        )
    tables = [name for name in names if "/" not in name and extension(name) in LABEL_EXTENSIONS]
    if len(classes) == 1 and tables:
        raise ValueError(
            f"{where}: the only class would be {classes[0]}; if {tables[0]} beside it has the labels, name it with "
            f"--labels {where}/{tables[0]}, and {where} as SOURCE; else move it away"
        )
    _check_level(where, names, classes)
    return classes


def _check_level(where: str, names: list[str], classes: Sequence[str]) -> None:
    """ValueError if all class folders hold the same folders of images, or if the only one holds several."""
    below: dict[str, set[str]] = {name: set() for name in classes}
    for name in filter(may_be_image, names):
        folder, _, rest = name.partition("/")
        if rest:
            below[folder].add(os.path.dirname(rest))
    same = below[classes[0]]
    if not same:  # which is said with the name of the class
        return
    level = os.path.commonpath(same)
    # One folder in every class, as train/CLASS/images, says nothing; nor do folders beside images.
    if level in same or any(folders != same for folders in below.values()):
        return
    found = sorted({os.path.relpath(folder, level or ".").partition("/")[0] for folder in same})
    places = [_url(f"{where}/{name}", level) for name in classes]
    would_be = f"the only class would be {classes[0]}" if len(classes) == 1 else f"{few(classes)} would be classes"
    advice = f"give {places[0]} as SOURCE" if len(places) == 1 else "give one of these folders as SOURCE"
    raise ValueError(
        f"{where}: {would_be}, but the classes seem to be further down: {few(found)} in {few(places)}; {advice}, or "
        "call those that are splits train, test and val"
    )


def _check_names(where: str, names: list[str], classes: tuple[str, ...]) -> None:
    """ValueError for an image or a folder that is of no class, and for a folder without an image."""
    _check_loose(where, names)
    folders = _folders(names)
    if unknown := [name for name in folders if name not in classes]:
        raise ValueError(f"{where}: expected only the classes of the train split, got {few(unknown)} as well")
    filled = {name.partition("/")[0] for name in names if may_be_image(name)}
    if not filled:
        raise ValueError(f"{where}: no image in it; add images in a subfolder for each class, or remove it")
    if empty := [name for name in folders if name not in filled]:
        raise ValueError(f"{where}: no image in the class folder {few(empty)}; add images or remove it")


def _check_loose(where: str, names: Iterable[str]) -> None:
    """ValueError if a file beside the subfolders may be an image: it has no label."""
    if loose := [name for name in names if "/" not in name and may_be_image(name)]:
        raise ValueError(
            f"{where}: {len(loose)} images lie beside the class folders: {few(loose)}; move or remove them, or name a "
            "file of labels with --labels"
        )


def _warn_of_layout(url: str, layout: Layout, classes: tuple[str, ...]) -> None:
    if layout.left_out:
        warnings.warn(f"{url}: left out {', '.join(layout.left_out)}", stacklevel=4)
    if list(classes) != sorted(classes):
        order = f"{few(classes)}, not as text, as torchvision's ImageFolder has them"
        warnings.warn(f"{url}: the class folders are numbers and are ordered as such: {order}", stacklevel=4)


def _warn_of_one_class(where: str, names: list[str], only: str) -> None:
    """It is taken, and is most often a level too high or a folder of images whose labels are elsewhere."""
    images = [name for name in names if may_be_image(name)]
    level, below = only, _folders(_below(images, only))
    while len(below) == 1:
        level = f"{level}/{below[0]}"
        below = _folders(_below(images, level))
    advice = "give the folder that holds one subfolder for each class, or name a file of labels with --labels"
    if below:
        advice = f"if {few(below)} in {where}/{level} are classes, give {where}/{level} as SOURCE"
    warnings.warn(f"{where}: the only class is {only}, and one class cannot be mixed: {advice}", stacklevel=4)


def _warn_of_others(where: str, names: list[str]) -> None:
    if ignored := [name for name in names if extension(name) in NOT_IMAGES]:
        warnings.warn(f"{where}: ignored {len(ignored)} files that are no images: {few(ignored)}", stacklevel=4)


def _folders(names: Iterable[str]) -> list[str]:
    """The folders that names begin with, in their order."""
    return list(dict.fromkeys(name.partition("/")[0] for name in names if "/" in name))


def _below(names: list[str], folder: str) -> list[str]:
    """The names in a folder, relative to it; "" is all."""
    start = len(folder) + 1
    return [name[start:] for name in names if name.startswith(f"{folder}/") and name[start:]] if folder else names


def _url(above: str, folder: str) -> str:
    return f"{above}/{folder}" if folder else above
