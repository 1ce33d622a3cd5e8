"""Unpickle plain data and arrays of numbers, and nothing else: a pickle can otherwise run any code.

A pickle names functions, calls them, and sets the state of what they return. Here each name that an array needs stands
for a function of this module, so a pickle never reaches NumPy: with `ndarray` or `dtype.__setstate__` it could take any
address for an array of objects. Arrays are made by `frombuffer` from bytes that the pickle holds.

The official CIFAR files were written by Python 2, whose strings are read as bytes; files that Python 3 and newer
NumPy versions wrote are read as well.
"""

from __future__ import annotations

import codecs
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_BYTE_ORDERS = ("|", "<", ">", "=")
_Refused = pickle.UnpicklingError


class _Global:
    """What a name in a pickle stands for: it can be called, but not changed."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any] | None) -> None:
        self._name, self._call = name, call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise _Refused(f"it calls {self._name}, which no array needs")
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"it changes {self._name}, which no array needs")


class _Dtype:
    """Its state is its byte order."""

    def __init__(self, description: Any, align: int = False, copy: int = False) -> None:
        name = _text(description)
        if not _NUMBERS.fullmatch(name):
            raise _Refused(f"it holds an array of dtype {name[:40]!r}, expected numbers such as 'u1'")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order not in _BYTE_ORDERS or any(part is not None for part in state[2:5]):
            raise _Refused("it holds an array of a dtype with fields or of an unknown byte order, expected numbers")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Made empty, and filled by its state."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise _Refused(f"it makes an array of {type(data).__name__}, expected bytes and a dtype of numbers")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=_text(order))  # type: ignore[call-overload]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    result = _Array()
    result.array = _array(data, dtype, shape, order)
    return result


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> _Array:
    if subtype is not _NDARRAY:
        raise _Refused("it makes an array of a type that is not numpy.ndarray")
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes with protocol 2: always as latin1."""
    if encoding != "latin1":
        raise _Refused(f"encoding {encoding!r} is not allowed")
    return codecs.encode(text, "latin1")


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)):
        raise _Refused(f"it describes an array by {type(value).__name__}, expected text")
    return value.decode("latin1") if isinstance(value, bytes) else value


_NDARRAY = _Global("numpy.ndarray", None)
_ALLOWED: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global("numpy.dtype", _Dtype),
    ("_codecs", "encode"): _Global("_codecs.encode", _encode),
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): _Global("_reconstruct", _reconstruct)
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Global("_frombuffer", _from_buffer) for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it refers to {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


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
