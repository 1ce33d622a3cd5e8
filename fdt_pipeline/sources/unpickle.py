"""Unpickle plain data and arrays of bytes, and nothing else: a pickle can otherwise run any code.

A pickle names functions, calls them, and sets the state of what they return. Here each name that an array needs stands
for a function of this module, so a pickle never reaches NumPy: with `ndarray` or `dtype.__setstate__` it could take any
address for an array of objects. Arrays are made by `frombuffer` from bytes that the pickle holds.

The official CIFAR files were written by Python 2, whose strings are read as bytes; files that Python 3 and newer
NumPy versions wrote are read as well.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_Refused = pickle.UnpicklingError


class _Global:
    """What a name in a pickle stands for: it can be called, but not changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes a function, which no array needs")


class _Bytes:
    """numpy.dtype("u1"), the only one that is known."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if name not in ("u1", b"u1"):
            raise _Refused(f"it holds an array of dtype {name!r:.40}, expected 'u1'")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):  # the others, byte order and flags, do not matter for bytes
            raise _Refused("it holds an array of a dtype with fields, expected 'u1'")


class _Array:
    """Made empty, and filled by its state."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Bytes) or not isinstance(data, (bytes, bytearray)):
            raise _Refused(f"it makes an array of {type(data).__name__}, expected bytes and a dtype")
        self.array = np.frombuffer(bytes(data), np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _ndarray(*_: Any) -> Any:
    raise _Refused("it calls numpy.ndarray, which no array needs")


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> _Array:
    if subtype is not _NDARRAY:
        raise _Refused("it makes an array of a type that is not numpy.ndarray")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    result = _Array()
    result.__setstate__((1, shape, dtype, order == "F", data))
    return result


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes with protocol 2: always as latin1."""
    if encoding != "latin1":
        raise _Refused(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_NDARRAY = _Global(_ndarray)
_ALLOWED = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _Global(_Bytes),
    "_codecs.encode": _Global(_encode),
    **{f"numpy.{core}.multiarray._reconstruct": _Global(_reconstruct) for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _Global(_from_buffer) for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise _Refused(f"it refers to {module}.{name}, which no array needs")
        return _ALLOWED[f"{module}.{name}"]


def load_dict(path: Path) -> dict[Any, Any]:
    """A dict whose values are arrays and plain data; ValueError, naming what was refused or broken, for all else."""
    with path.open("rb") as file:
        try:
            content = _Unpickler(file, encoding="bytes").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: refused to unpickle: {error}; fetch the official file") from None
        except Exception as error:  # the unpickler raises whatever broken bytes lead it to
            raise ValueError(f"{path}: broken pickle ({type(error).__name__}: {error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a pickled dict, got {type(content).__name__}; fetch the official file")
    return {key: value.array if isinstance(value, _Array) else value for key, value in content.items()}
