"""Labels as other programs write them: a number or the name of a class, in a .cls, a .txt or a field of a .json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..sources.source import MAX_NUMBERED_CLASSES, check_class_names, ordered_classes
from ..storage import open_folder

Label = int | str  # a number, or the name of a class
# webdataset's ShardWriter writes str(label), which of a torch scalar is "tensor(7)".
_NUMBER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?|tensor\((\d{1,18})\)")


@dataclass(frozen=True)
class LabelField:
    """The member that holds a sample's label, "cls", "txt" or "json"; of a json, the field, with dots where it lies in
    another one."""

    member: str
    field: str = ""

    def __str__(self) -> str:
        return f"{self.member}:{self.field}" if self.field else self.member

    def value(self, data: bytes) -> Label:
        """The label in a member's content. ValueError if there is none."""
        try:
            text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError(f"its .{self.member} is no text: it begins with {data[:16]!r}") from None
        found = _field(text, self.field) if self.member == "json" else text
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, str):
            found = _number_or_name(found.strip())
        if isinstance(found, bool) or not isinstance(found, (int, str)) or found == "":
            where = f"field {self.field} of its .json" if self.field else f"its .{self.member}"
            shown = json.dumps(found, ensure_ascii=False)
            raise ValueError(f"no label: {where} is {shown[:40]}, expected a number or a name")
        return found


def label_field(text: str) -> LabelField:
    """What --label says: cls, txt or json:FIELD."""
    member, _, field = text.partition(":")
    if (member == "json") != bool(field) or member not in ("cls", "txt", "json"):
        raise ValueError(f"a label is in cls, txt or json:FIELD (such as json:label or json:meta.class), got {text!r}")
    return LabelField(member, field)


class ClassNumbers:
    """Label -> the number of its class."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(classes)}

    def __call__(self, label: Label) -> int:
        """ValueError if it is of no class."""
        if isinstance(label, str):
            if label not in self._numbers:
                raise ValueError(f"label {_shown(label)} is none of the {len(self._numbers)} classes")
            return self._numbers[label]
        if not 0 <= label < len(self._numbers):
            raise ValueError(f"label {label} is out of range: expected 0..{len(self._numbers) - 1}")
        return label


def read_classes(location: str) -> tuple[str, ...]:
    """Class names from a file: one a line, or JSON: a list of them, or an object of name -> number."""
    above, slash, file = location.rpartition("/")
    try:
        return checked_classes(_class_names(open_folder(above or slash or ".").read(file).decode("utf-8-sig")))
    except FileNotFoundError:
        raise ValueError(f"{location}: no such file; expected class names, one a line, or as JSON") from None
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


def checked_classes(names: Sequence[str]) -> tuple[str, ...]:
    """ValueError unless they are names that differ, and none is the number of another class."""
    check_class_names(names)
    if not names:
        raise ValueError("no class names there; expected them one a line, or as JSON")
    for number, name in enumerate(names):
        if _number_or_name(name) not in (number, name):
            raise ValueError(
                f"class {number} is called {name!r}, so a label {name} could be its name or the number of another "
                "class: name the classes by words"
            )
    return tuple(names)


def classes_found(labels: Iterable[tuple[str, Label]]) -> tuple[str, ...]:
    """The classes of these labels: "0" up to the largest number that may be one, or the names in order.

    labels: (where it is, label). ValueError if names and numbers occur, or too many names to be classes.
    """
    names: dict[str, str] = {}
    numbers: dict[int, str] = {}
    for where, label in labels:
        if isinstance(label, str):
            names.setdefault(label, where)
        else:
            numbers.setdefault(label, where)
    if names and numbers:
        (name, of_name), (number, of_number) = next(iter(names.items())), next(iter(numbers.items()))
        raise ValueError(
            f"labels are names, such as {_shown(name)} ({of_name}), and numbers, such as {number} ({of_number}): pass "
            "--classes FILE, which says what number a name has, or fix the labels"
        )
    if len(names) > MAX_NUMBERED_CLASSES:
        name, where = next(iter(names.items()))
        raise ValueError(
            f"labels are {len(names)} different texts, such as {_shown(name)} ({where}): expected names of up to "
            f"{MAX_NUMBERED_CLASSES} classes; say where they are with --label"
        )
    if names:
        return ordered_classes(names)
    return tuple(map(str, range(max((number for number in numbers if number < MAX_NUMBERED_CLASSES), default=0) + 1)))


def _shown(label: str) -> str:
    return repr(label if len(label) <= 60 else f"{label[:60]}...")


def _number_or_name(text: str) -> Label:
    match = _NUMBER.fullmatch(text)
    return int(match[1] or match[2]) if match else text


def _field(text: str, field: str) -> Any:
    """A key with dots goes before the way through objects."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"its .json is broken: it begins with {text[:40]!r}") from None
    if isinstance(found, dict) and field in found:
        return found[field]
    for name in field.split("."):
        if not isinstance(found, dict) or name not in found:
            fields = sorted(found) if isinstance(found, dict) else []
            there = ", ".join(fields[:10]) or "none"
            raise ValueError(f"no label: its .json has no field {field}, it has {there}")
        found = found[name]
    return found


def _class_names(text: str) -> list[str]:
    if text.lstrip()[:1] not in ("[", "{"):
        return [line.strip() for line in text.rstrip().splitlines()]
    content = json.loads(text)
    if isinstance(content, list):
        return content
    if sorted(map(str, content.values())) != sorted(map(str, range(len(content)))):
        raise ValueError(
            f"expected the numbers 0..{len(content) - 1}, one a name, got {str(list(content.values()))[:80]}"
        )
    return sorted(content, key=lambda name: int(content[name]))
