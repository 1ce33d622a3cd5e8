"""Labels of images from a file: CSV, TSV, JSON lines, or fields between white space, with or without a header.

Every image must have one row, and every row one image: anything else is an error that names the first few.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .files import files_at
from .source import check_no_pointer, few

LABEL_EXTENSIONS = frozenset({".csv", ".tsv", ".txt", ".jsonl", ".ndjson"})
# What columns are called, without regard to case and separators: file_name is filename.
_NAME_HEADERS = (
    *("file", "filename", "filepath", "path"),
    *("image", "imagefile", "imagefilename", "imageid", "imagename", "imagepath", "img"),
)
_BOXES_HEADER = "predictionstring"  # in ImageNet's LOC_val_solution.csv: of each box the class and four coordinates
_LABEL_HEADERS = ("label", "class", "classid", "classname", "category", "target", _BOXES_HEADER)
Rows = list[list[str]]


class LabelFile(NamedTuple):
    """columns: the headers, or from 1 the numbers, of the columns of names and of labels; None to find them."""

    url: str
    columns: tuple[str, str] | None = None


def label_file(text: str) -> LabelFile:
    """FILE or FILE:NAME_COLUMN:LABEL_COLUMN, as --labels has it; a file whose own name looks so goes first."""
    url, *columns = text.rsplit(":", 2)
    if len(columns) < 2 or any("/" in column for column in columns) or os.path.exists(text):
        return LabelFile(text)
    return LabelFile(url, (columns[0], columns[1]))


def read_labels(file: LabelFile, root: str, images: Sequence[str]) -> list[str]:
    """The label of each image.

    images: paths below the path or URL `root`. The file may name them by these paths, by paths that are relative to its
    own folder, or by their names alone, each with or without the extension.
    """
    rows, names, labels = _columns(file, _read_rows(file), root, images)
    _, form = _best_form([row[names] for row in rows], file, root, images)
    positions, shared = _positions(images, form)
    found = [""] * len(images)
    faults: dict[str, list[str]] = {}
    for row in rows:
        name, label = row[names], row[labels]
        if name not in positions:
            faults.setdefault("rows without an image", []).append(name)
        elif name in shared:
            faults.setdefault("rows that name several images", []).append(name)
        elif not label:
            faults.setdefault("rows without a label", []).append(name)
        elif found[positions[name]]:
            faults.setdefault("images with two rows", []).append(name)
        else:
            found[positions[name]] = label
    if "" in found:
        faults["images without a row"] = [image for image, label in zip(images, found, strict=True) if not label]
    if faults:
        shown = "; ".join(f"{len(some)} {fault}: {few(some)}" for fault, some in faults.items())
        raise ValueError(f"{file.url}: {shown}; expected one row with a label for each image in {root}")
    return found


def _columns(file: LabelFile, rows: Rows, root: str, images: Sequence[str]) -> tuple[Rows, int, int]:
    """(rows without the header, the columns of names and of labels)."""
    first = rows[0]
    if file.columns is not None:
        if set(file.columns) <= set(first):
            return rows[1:], first.index(file.columns[0]), first.index(file.columns[1])
        numbers = [int(column) if column.isdecimal() else 0 for column in file.columns]
        if not all(1 <= number <= len(first) for number in numbers):
            raise _unclear(file, f"no columns {' and '.join(file.columns)}", first)
        return rows, numbers[0] - 1, numbers[1] - 1
    headers = [_header(field) for field in first]
    named, labelled = (
        [column for column, header in enumerate(headers) if header in known]
        for known in (_NAME_HEADERS, _LABEL_HEADERS)
    )
    if named or labelled:
        if len(named) != 1 or len(labelled) != 1:
            raise _unclear(file, "cannot tell which columns are the file names and the labels", first)
        return rows[1:], named[0], labelled[0]
    hits = [_best_form([row[column] for row in rows], file, root, images)[0] for column in range(len(first))]
    names = hits.index(max(hits))  # all are 0 where no column names images
    if hits.count(max(hits)) > 1 or names + 1 == len(first):
        fault = f"no header that is known, nor one column that names images in {root}, with labels after it"
        raise _unclear(file, fault, first)
    if _best_form([first[names]], file, root, images)[0] == 0:
        raise _unclear(file, "the first line is no header that is known, and names no image", first)
    return rows, names, names + 1


def _unclear(file: LabelFile, fault: str, first: list[str]) -> ValueError:
    columns = ", ".join(f"{number} ({field})" for number, field in enumerate(first, 1))
    return ValueError(
        f"{file.url}: {fault}; its columns are {columns}: name two of them, --labels FILE:NAME_COLUMN:LABEL_COLUMN, by "
        "their headers, or by their numbers where there is no header"
    )


def _best_form(
    values: Iterable[str], file: LabelFile, root: str, images: Sequence[str]
) -> tuple[int, Callable[[str], str]]:
    """(how many of the values name an image, by which form of its path): the form that most of them have."""
    from_file = posixpath.relpath(root, posixpath.dirname(file.url) or ".")
    places: tuple[Callable[[str], str], ...] = (str, lambda image: f"{from_file}/{image}", posixpath.basename)
    forms = [*places, *(lambda image, place=place: posixpath.splitext(place(image))[0] for place in places)]
    values, best = list(values), (-1, forms[0])
    for form in forms:
        known = set(map(form, images))
        hits = sum(value in known for value in values)
        best = (hits, form) if hits > best[0] else best
    return best


def _positions(images: Sequence[str], form: Callable[[str], str]) -> tuple[dict[str, int], set[str]]:
    """(the position of the image that a name stands for, the names that stand for several)."""
    positions: dict[str, int] = {}
    shared = set()
    for position, name in enumerate(map(form, images)):
        if positions.setdefault(name, position) != position:
            shared.add(name)
    return positions, shared


def _read_rows(file: LabelFile) -> Rows:
    """All rows that are not empty, a header among them, of the same number of fields."""
    above, name = posixpath.split(file.url)
    try:
        data = files_at(above).read(name)
        check_no_pointer(data)
        text = data.decode("utf-8-sig")
        rows = [[field.strip() for field in row] for row in _fields(text) if row]
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{file.url}: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{file.url}: not readable as a table ({error})") from None
    if len(rows) < 1 or len(rows[0]) < 2:
        raise ValueError(f"{file.url}: expected rows of a file name and a label, got {rows[0] if rows else 'none'}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{file.url}: expected {len(rows[0])} fields as in the first row, got {row} in row {number}"
            )
    for column in [column for column, field in enumerate(rows[0]) if _header(field) == _BOXES_HEADER]:
        for row in rows[1:]:
            words = row[column].split()
            if len(words) % 5 or len(set(words[::5])) > 1:
                raise ValueError(f"{file.url}: expected boxes of one class, CLASS X Y X Y CLASS ..., got {row}")
            row[column] = "".join(words[:1])
    return rows


def _header(field: str) -> str:
    return re.sub(r"[\W_]", "", field.lower())


def _fields(text: str) -> Iterable[list[str]]:
    if text.lstrip().startswith("{"):
        return _json_fields(text)
    first = text.lstrip().partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in first), None)
    if delimiter is None:
        return [line.split() for line in text.split("\n")]
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def _json_fields(text: str) -> Rows:
    """The keys as a header, then a row for each line; "" for all that is neither text nor a whole number."""
    objects = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from None
            if not isinstance(found, dict):
                raise ValueError(f"line {number}: expected a JSON object, got {line:.40}")
            objects.append(found)
    keys = list(dict.fromkeys(key for found in objects for key in found))
    return [keys, *([_as_text(found.get(key)) for key in keys] for found in objects)]


def _as_text(value: object) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
