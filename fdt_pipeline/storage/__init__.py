"""Where files lie: local folders and, through fsspec, object stores. See README.md."""

from .folder import Folder, is_url, open_folder

__all__ = ["Folder", "is_url", "open_folder"]
