"""One builder at a time in a folder, across processes and threads."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "build.lock"
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class _Turn:
    """Among the threads of this process; a fork gets a new one, as a thread that holds it is not in the child."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_turn = _Turn()


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Waits for its turn. Yields whether nobody else builds: False on a file system without locks.

    A lock of POSIX, over flock: it belongs to this process and not to its forks, and is gone with it, however it ends.
    OSError where the folder cannot be written to.
    """
    with _turn.lock:
        descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield _lock(descriptor)
        finally:
            os.close(descriptor)


def may_lock(folder: Path) -> bool:
    """False if another user has made the lock of a folder that both may write to."""
    lock = folder / _NAME
    return not os.path.lexists(lock) or os.access(lock, os.W_OK)  # in this order, as another may make it meanwhile


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return False
    return True
