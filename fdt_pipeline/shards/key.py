"""The name of a sample in its shard: where it was in the source and, if that says more, what it was called there.

KEY is the 8-digit position in the source, then "_" and the source key with every character outside [A-Za-z0-9_-]
made "_", of which the end is kept if KEY would exceed 80 characters. The position makes it unique; without dots,
webdataset and DALI split member names at the same place; 80 characters and an extension fit a USTAR name (100).
"""

from __future__ import annotations

import re

MAX_LENGTH = 80


def sample_key(position: int, source_key: str) -> str:
    number = f"{position:08d}"
    if source_key in ("", str(position)):
        return number
    slug = re.sub(r"[^A-Za-z0-9_-]", "_", source_key)
    return f"{number}_{slug[-(MAX_LENGTH - len(number) - 1) :]}"
