"""Where images come from: official data sets, image folders and arrays, as one kind of sequence. See README.md."""

from .arrays import ArraySource
from .opening import KINDS, download_source, open_source, source_splits
from .source import Sample, Source

__all__ = ["KINDS", "ArraySource", "Sample", "Source", "download_source", "open_source", "source_splits"]
