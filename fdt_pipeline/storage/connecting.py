"""fsspec's filesystem for a URL, so set that nothing is cached, nothing waits for minutes, and only we try again."""

from __future__ import annotations

from typing import Any

_PACKAGES = "s3fs for s3://, gcsfs for gs://, aiohttp for http://"
# Seconds until a connection stands, and between two pieces of an answer. s3fs has 5 and 15 of its own; aiohttp has no
# bound on the second, but one of 5 minutes on the whole, which a large file on a slow line does not keep.
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0


def connect(protocol: str, url: str, options: dict[str, Any]) -> Any:
    """ImportError if a package for the protocol is missing, ValueError if there is none; both name the URL."""
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{url}: needs fsspec: pip install 'fdt-pipeline[remote]'") from error
    try:
        if protocol in ("http", "https"):
            options = _with_timeouts(fsspec.config.conf.get(protocol, {}), options)
        fs = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except ImportError as error:
        raise ImportError(f"{url}: {error}; pip install 'fdt-pipeline[remote]' brings {_PACKAGES}") from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}; expected a path, or a URL that fsspec knows") from error
    if protocol in ("s3", "s3a"):
        # Else each of our 6 tries would be 5 of s3fs's, and each of those 5 of botocore's.
        fs.retries = 1
        fs.config_kwargs.setdefault("retries", {"max_attempts": 0})
    return fs


def _with_timeouts(configured: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What fsspec's configuration or the caller says comes first."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    chosen = {**configured.get("client_kwargs", {}), **options.get("client_kwargs", {})}
    return {**options, "client_kwargs": {"timeout": timeout, **chosen}}
