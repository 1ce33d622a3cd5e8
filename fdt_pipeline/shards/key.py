"""The name of a sample in its shard: where it was in the source and, if that says more, what it was called there.

KEY is the 8-digit position in the source, then "_" and the source key, in which every byte of its UTF-8 outside
[A-Za-z0-9_-] is written as %XX, as in a URL: `photos/cat/a 1.jpg` becomes `00000007_cat%2Fa%201%2Ejpg`. If KEY would
exceed 80 characters, the end of it is kept. The position makes it unique; without dots, webdataset and DALI split
member names at the same place; 80 characters and an extension fit a USTAR name (100).
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

MAX_LENGTH = 80
_PLAIN = re.compile(r"[A-Za-z0-9_/-]*(\.[A-Za-z0-9]+)?")


def sample_key(position: int, source_key: str) -> str:
    number, escaped = f"{position:08d}", _escaped(source_key)
    if source_key in ("", str(position)):
        return number
    first = max(0, len(escaped) - (MAX_LENGTH - len(number) - 1))
    while "%" in escaped[max(0, first - 2) : first]:  # not within an escape
        first += 1
    return f"{number}_{escaped[first:]}"


def needs_mapping(key: str, source_key: str) -> bool:
    """Whether the manifest says what the source key was: where KEY was cut, or holds more than letters, digits, "_",
    "-", "/" and one extension. All others can be read off the KEY."""
    return "_" in key and not (_PLAIN.fullmatch(source_key) and source_key_of(key) == source_key)


def source_key_of(key: str) -> str:
    """The end of the source key that KEY holds: all of it unless it was cut."""
    number, _, escaped = key.partition("_")
    if not escaped:
        return str(int(number))
    return unquote_to_bytes(escaped).decode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    quoted = quote(text.encode("utf-8", "surrogateescape"), safe="")
    return quoted.replace(".", "%2E").replace("~", "%7E")
