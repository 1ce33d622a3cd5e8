"""Calls over a network that are tried again, as long as that can help."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

# Answers, not failures: the same would come again.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
# Of the libraries below fsspec, whose classes are not to be imported here.
_MODULES = ("aiohttp", "aiobotocore", "botocore", "urllib3", "google", "gcsfs", "requests", "http.client")
_NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError")


@dataclass(frozen=True)
class Retry:
    """tries in all, with waits of first_wait, twice that, ... up to longest_wait seconds between them."""

    tries: int = 6
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def call(self, url: str, function: Callable[[], _T]) -> _T:
        """FileNotFoundError and PermissionError as they come; OSError, naming the URL, if no try succeeds."""
        wait = self.first_wait
        for number in range(1, self.tries + 1):
            try:
                return function()
            except Exception as error:
                if type(error).__name__ in _NO_ACCESS:
                    raise PermissionError(f"{url}: no access: {error}; say who you are, see README.md") from error
                if not is_transient(error):
                    raise
                if number == self.tries:
                    raise OSError(
                        f"{url}: could not be reached in {number} tries: {_reason(error)}; try again later"
                    ) from error
            time.sleep(wait)
            wait = min(2 * wait, self.longest_wait)
        raise AssertionError("the last try returns or raises")


def is_transient(error: BaseException) -> bool:
    """Time-outs, broken connections, answers of 5xx: whatever is not a clear no."""
    if isinstance(error, (OSError, TimeoutError, EOFError)):
        return not isinstance(error, _FINAL)
    return type(error).__module__.startswith(_MODULES)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
