"""Parts of files that are being fetched: each call writes one of its own.

    SHA256.SIZE.HOST-PID-START-NUMBER.part    written by that process, which began at START
    SHA256.SIZE.part                          given up: the next process goes on with it

Locks alone do not keep processes apart: on file systems that clusters share, flock may lock nothing.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

_OWNER = re.compile(r".+\.(?P<host>[^/]+)-(?P<pid>\d+)-(?P<start>\d*)-\d+\.part")
_numbers = itertools.count()


def own_part(given_up: Path) -> Path:
    """A path that no other call writes to. given_up: the path of SHA256.SIZE.part."""
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{_start_of(pid)}-{next(_numbers)}"
    return given_up.with_name(f"{given_up.stem}.{owner}.part")


def take_over(given_up: Path, own: Path) -> None:
    """Rename the largest part of the same file that no process writes to any more to `own`, and remove the others."""
    parts = [given_up, *given_up.parent.glob(f"{given_up.stem}.*.part")]
    for part in sorted(filter(_is_left_behind, parts), key=_size):
        with suppress(FileNotFoundError):  # another process was quicker
            part.replace(own)


def _is_left_behind(part: Path) -> bool:
    """Whether a part is given up, or its process is dead. Processes of another host cannot be seen."""
    owner = _OWNER.fullmatch(part.name)
    if owner is None:
        return part.exists()
    return owner["host"] == _host() and _start_of(int(owner["pid"])) != owner["start"]


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def _start_of(pid: int) -> str:
    """When a process began, in clock ticks since the machine did, as process numbers are reused; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
