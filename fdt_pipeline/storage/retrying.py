"""Calls over a network that are tried again where that can help."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

_T = TypeVar("_T")

# Answers, not failures: another try would give the same.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# Of the libraries below fsspec, by name, as their classes are not to be imported here.
_BROKEN = {
    *("TimeoutError", "ClientError", "ConnectionError", "HTTPClientError", "IncompleteReadError", "TransportError"),
    *("FlexibleChecksumError", "ChecksumError"),  # what S3 and GCS say of a body with a flipped bit
}
_NO_ACCESS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
    *("ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError"),
}
# S3 says of these that they may be tried again, though with the status 400; the others are time-outs and "too many".
_AGAIN_CODES = ("RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "OperationAborted")
_AGAIN_STATUSES = (408, 425, 429)
_LIBRARIES = ("botocore", "aiobotocore", "s3fs", "aiohttp", "gcsfs", "google", "requests")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
}


@dataclass(frozen=True)
class Retry:
    """tries in all, with waits of first_wait, twice that, ... up to longest_wait seconds between them."""

    tries: int = 6
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def call(
        self,
        url: str,
        function: Callable[[], _T],
        failed: str = "could not be reached",
        pause: Callable[[float], object] | None = None,
    ) -> _T:
        """OSError that names the URL if no try succeeds; FileNotFoundError, PermissionError if that is the answer.
        pause: sleeps between tries, and may raise to end them."""
        wait = self.first_wait
        for number in range(1, self.tries + 1):
            try:
                return function()
            except Exception as error:
                if not is_transient(error):
                    raise_final(url, error)
                if number == self.tries:
                    raise OSError(f"{url}: {failed} in {number} tries: {reason(error)}; try again later") from error
            (pause or time.sleep)(wait)
            wait = min(2 * wait, self.longest_wait)
        raise AssertionError("the last try returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether another try may help: after time-outs, broken connections and answers of 5xx or "too many"."""
    names = _names(error)
    if isinstance(error, _FINAL) or getattr(error, "errno", None) in _DISK_ERRORS or names & _NO_ACCESS:
        return False
    status, code = answered(error)
    if status is not None:
        return status >= 500 or status in _AGAIN_STATUSES or code in _AGAIN_CODES
    if isinstance(error, ValueError):  # such as a URL that is none
        return False
    return isinstance(error, (OSError, EOFError)) or bool(names & _BROKEN)


def answered(error: BaseException) -> tuple[int | None, str]:
    """The HTTP status of the answer that caused an error, and the store's code; (None, "") if there was no answer."""
    for name in ("status", "code"):  # aiohttp's, gcsfs's; not of the cause: of a body that broke off that has a "code"
        if isinstance(getattr(error, name, None), int):
            return getattr(error, name), ""
    for source in (error, error.__cause__):  # botocore's, which s3fs gives as the cause
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
    return None, ""


def raise_final(url: str, error: Exception) -> NoReturn:
    """Raise an error that another try would not fix, with the URL; one that no network caused is raised as it is."""
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(f"{url}: not there") from error
    status, _ = answered(error)
    if isinstance(error, PermissionError) or status in (401, 403) or _names(error) & _NO_ACCESS:
        scheme = url.partition(":")[0]
        what = _CREDENTIALS.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme), "check who may read and write there")
        raise PermissionError(f"{url}: no access ({reason(error)}): {what}") from error
    is_theirs = type(error).__module__.partition(".")[0] in _LIBRARIES
    if status is not None or is_theirs or (isinstance(error, OSError) and not isinstance(error, _FINAL)):
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"{url}: {reason(error)}") from error
    raise error


def reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}
