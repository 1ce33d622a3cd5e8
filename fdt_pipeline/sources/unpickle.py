"""Unpickle plain data and NumPy arrays, and nothing else: a pickle can otherwise run any code.

The official CIFAR files were written by Python 2, whose strings are read as bytes; files that Python 3 and newer
NumPy versions wrote are read as well.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Asked of an array, because the module that holds them was renamed in NumPy 2 and its old name warns.
_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]


def _dtype(description: Any, align: int = False, copy: int = False) -> np.dtype[Any]:
    """Python 2 wrote the flags as 0 and 1, of which NumPy 2.4 warns."""
    return np.dtype(description, align=bool(align), copy=bool(copy))


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes with protocol 2: always as latin1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return codecs.encode(text, "latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def load_arrays_only(path: Path) -> Any:
    """ValueError, naming what was refused or broken, for all but plain data and arrays."""
    with path.open("rb") as file:
        try:
            return _Unpickler(file, encoding="bytes").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: refused to unpickle: {error}; fetch the official file") from None
        except Exception as error:  # the unpickler raises whatever broken bytes lead it to
            raise ValueError(f"{path}: broken pickle ({type(error).__name__}: {error}); fetch it again") from None
