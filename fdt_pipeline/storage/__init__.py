"""Where files lie: local folders and, through fsspec, object stores. See README.md."""

from .folder import Folder, open_folder

__all__ = ["Folder", "open_folder"]
