"""Where images come from: data sets in files, or of other libraries, as one kind of sequence. See README.md."""

from .arrays import ArraySource
from .dataset import DatasetSource
from .opening import KINDS, download_source, open_source, source_splits
from .source import Sample, Source, with_classes

__all__ = [
    "KINDS",
    "ArraySource",
    "DatasetSource",
    "Sample",
    "Source",
    "download_source",
    "open_source",
    "source_splits",
    "with_classes",
]
