"""DALI's index of a tar of any origin, and what keeps a tar from being a set of samples.

The index is what DALI's wds2idx makes, byte for byte. Where that is wrong ours is right: after a GNU long name it
takes the name for the content, it makes none of names that are not ASCII in a UTF-8 locale, and it accepts a cut tar.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from .index import VERSION, Member, key_of, readable
from .tar import tar_entries

MAX_PROBLEMS = 10
# One image may be a jpg and the next a png: readers are asked for "jpg;png;webp".
_IMAGES = frozenset(["bmp", "gif", "jp2", "jpeg", "jpg", "npy", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"])
_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 92: "\\\\"}
_PLAIN = re.compile(rb"[ -\[\]-~]*")  # printable ASCII without the backslash


class TarIndex(NamedTuple):
    """problems: lines that name the key; the text is to be written only if there are none. spellings: the extensions of
    images, where one member of every sample has several of them, such as JPG and jpg."""

    num_samples: int
    text: bytes
    problems: list[str]
    spellings: list[str]


def index_tar(file: BinaryIO) -> TarIndex:
    """The index of a tar, from its headers alone. The index is held in memory, the tar is not."""
    found = _Found()
    try:
        for key, members in groupby(_members(file, found.problems), key=lambda member: key_of(member.name)):
            found.add(key, list(members))
    except ValueError as error:
        found.problems.append(str(error))
        return TarIndex(len(found.lines), b"", _shown(found.problems), [])
    text = "\n".join([f"{VERSION} {len(found.lines)}", *found.lines, ""]).encode("ascii")
    return TarIndex(len(found.lines), text, _shown([*found.problems, *found.differences()]), found.spellings())


def _shown(problems: list[str]) -> list[str]:
    """The first problems, with names as they are and not as tar escapes them."""
    more = len(problems) - MAX_PROBLEMS
    return [readable(problem) for problem in problems[:MAX_PROBLEMS]] + [f"and {more} problems more"] * (more > 0)


def _members(file: BinaryIO, problems: list[str]) -> Iterator[Member]:
    num_bytes = file.seek(0, os.SEEK_END)
    for entry in tar_entries(file, num_bytes):
        name = escaped(entry.name)
        base = name.rpartition("/")[2]
        if base.startswith("."):  # a hidden file: webdataset and DALI leave it out
            continue
        extension = base.partition(".")[2]
        if not extension:
            problems.append(f"{name}: has no extension: members are called KEY.EXTENSION; leave it out, or rename it")
        elif " " in name:
            problems.append(f"{name}: has a blank in its name, which DALI's index cannot hold; rename it")
        else:
            yield Member(extension, entry.offset, entry.size, name)


def escaped(name: bytes) -> str:
    """A name as `tar --list` prints it in the C locale, and so wds2idx: \\ooo for what is not printable ASCII."""
    if _PLAIN.fullmatch(name):
        return name.decode("ascii")
    plain = (_ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in name)
    return "".join(plain)


class _Found:
    """The lines of an index, and what is wrong with their samples."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[str] = []
        self._keys: set[str] = set()
        self._by_kinds: dict[tuple[str, ...], list[str]] = {}
        self._spellings: dict[str, set[str]] = {}

    def add(self, key: str, members: list[Member]) -> None:
        self.lines.append(" ".join(" ".join(map(str, member)) for member in members))
        if key in self._keys:
            self.problems.append(f"sample {key}: occurs twice: the members of a sample must lie side by side")
        self._keys.add(key)
        extensions = [member.extension for member in members]
        if len(set(extensions)) != len(extensions):
            self.problems.append(f"sample {key}: has two members of one name: {', '.join(extensions)}")
        self._by_kinds.setdefault(tuple(sorted(map(_kind, extensions))), []).append(key)
        for extension in extensions:
            self._spellings.setdefault(_kind(extension), set()).add(extension)

    def spellings(self) -> list[str]:
        """Of images that have several: a reader that is told of one gives the others as empty images."""
        several = (sorted(found) for found in self._spellings.values() if len(found) > 1)
        return next(several, [])

    def differences(self) -> list[str]:
        """A line for each sample whose members are not those that most samples have."""
        if not self._by_kinds:
            return ["it holds no sample"]
        usual = max(self._by_kinds, key=lambda kinds: (len(self._by_kinds[kinds]), kinds))
        return [
            f"sample {key}: {_difference(kinds, usual)}"
            for kinds, keys in self._by_kinds.items()
            if kinds != usual
            for key in keys
        ]


def _kind(extension: str) -> str:
    """The extension; "image" stands for the last part of an image's."""
    front, dot, last = extension.rpartition(".")
    return front + dot + "image" if last.lower() in _IMAGES else extension


def _difference(kinds: tuple[str, ...], usual: tuple[str, ...]) -> str:
    lacks, more = Counter(usual) - Counter(kinds), Counter(kinds) - Counter(usual)
    parts = [f"lacks {_names(lacks)}, which others have"] if lacks else []
    parts += [f"has {_names(more)}, which others lack"] if more else []
    return "; ".join(parts)


def _names(kinds: Counter[str]) -> str:
    return ", ".join(f"an {kind}" if kind == "image" else f".{kind}" for kind in kinds.elements())
