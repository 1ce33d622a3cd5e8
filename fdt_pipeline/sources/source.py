"""What every source is: a sequence of labelled 8-bit images that can be asked for one by one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


class Sample(NamedTuple):
    """image u8[h w c] in C order, c = 1 (gray) or 3 (RGB); label in 0..len(classes)-1; key, unique in its source."""

    image: U8
    label: int
    key: str


class Source(Protocol):
    """Labels are known without reading an image; images are read when asked for.

    A source may offer more, each of which is looked for: `take(positions i64[m]) -> Source`, just those samples, as it
    is sent to other processes (else all of the source is); `key(i) -> str` without reading the image; `channels` and
    `read_file(i) -> bytes`, if samples are image files, which may then be kept; `states(positions)`, for each a str
    that is different when the file has changed, by which a resumed run knows what to do again; `close()`.
    """

    @property
    def kind(self) -> str: ...

    @property
    def split(self) -> str | None: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> I64: ...

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(h, w, c) if all images are known to have it, else None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...
