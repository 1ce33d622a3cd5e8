"""One Parquet file: its labels, and its images row by row.

The image column is a struct with binary `bytes`. The label column has numbers of the class names in the schema's
"huggingface" metadata, plain numbers, or strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Types by the names that pyarrow prints, and our errors too.
_IMAGE_TYPE = re.compile(r"struct<(.*, )?bytes: (large_)?binary\b.*")
_LABEL_TYPE = re.compile(r"u?int\d+|(large_)?string")
# Bytes read at a time. Without it, or with pre_buffer, pyarrow reads a column's part of a row group at once.
_BUFFER = 1 << 20
_ROWS = 16  # whose images are taken from pyarrow's pages at a time


class LabelColumn(NamedTuple):
    """The label column of a file. labels: integers [n]; names: what they are numbers of, if known; is_text: the column
    holds strings, and `names` are those which occur in this file."""

    file: Path
    state: str
    labels: npt.NDArray[np.integer]
    names: tuple[str, ...] | None
    is_text: bool


class _Columns(NamedTuple):
    """Names of the columns of images and of labels; the names of the classes, if the metadata has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def read_labels(file: Path) -> LabelColumn:
    status = file.stat()
    state = f"{status.st_size}:{status.st_mtime_ns}"
    with _opened(file) as parquet:
        _, label, classes = _columns(file, parquet.schema_arrow)
        column = parquet.read(columns=[label]).column(0)
        if not len(column):
            raise ValueError(f"{file}: expected rows, got none; fetch it again, or remove it")
        if column.null_count:
            row = np.argmax(column.is_null().to_numpy())
            raise ValueError(f"{file}: row {row}: expected a label in column {label}, got null; remove the row")
        if "string" not in str(column.type):
            return LabelColumn(file, state, column.to_numpy(), classes, False)
        encoded = column.combine_chunks().dictionary_encode()
        return LabelColumn(file, state, encoded.indices.to_numpy(), tuple(encoded.dictionary.to_pylist()), True)


def read_images(file: Path) -> Iterator[bytes | None]:
    """The bytes of all images, None for a null."""
    with _opened(file) as parquet:
        column = f"{_columns(file, parquet.schema_arrow).image}.bytes"
        # Threads have nothing to do for one column; with them, 240 MB of images left 200 MB unused in the allocator.
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
            yield from batch.column(0).flatten()[0].to_pylist()  # where the struct is null, so is this


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile. ValueError, naming the file, if it is cut or broken, whenever that shows."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{file}: needs pyarrow: pip install 'fdt-pipeline[parquet]'") from error
    try:
        with parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk's
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file}: expected a whole Parquet file ({reason}); fetch it again (if git cloned it: git lfs pull)"
        ) from error


def _columns(file: Path, schema: Any) -> _Columns:
    """The columns of images and of labels. A ClassLabel by the metadata goes before other integers and strings."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = {name: feature for name, feature in about["info"]["features"].items() if isinstance(feature, dict)}
    except (ValueError, LookupError, AttributeError, TypeError):  # none, or another program's
        features = {}
    kinds = {name: features.get(name, {}).get("_type") for name in schema.names}
    types = {field.name: str(field.type) for field in schema}
    images = [name for name in types if _IMAGE_TYPE.fullmatch(types[name]) and kinds[name] in (None, "Image")]
    plain = [name for name in types if _LABEL_TYPE.fullmatch(types[name])]
    labels = [name for name in plain if kinds[name] == "ClassLabel"] or plain

    def one_of(found: list[str], name: str, what: str) -> str:
        if len(found) == 1 or name in found:
            return name if name in found else found[0]
        got = ", ".join(f"{name}: {kind}" for name, kind in types.items())
        raise ValueError(f"{file}: expected one column of {what}, or one named {name}, got {len(found)} of {got}")

    image = one_of(images, "image", "images (struct<bytes: binary, path: string>)")
    label = one_of(labels, "label", "labels (integers or strings)")
    names = features.get(label, {}).get("names")
    return _Columns(image, label, tuple(names) if names else None)
