"""`fn.fdt` in DALI, from `import fdt_pipeline` on: the operators are built and loaded when the first one is asked for.

Neither DALI nor a compiler is touched by the import itself. DALI puts the operators of a library into the module that
stands here, so after that it is a module like any other.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from fdt_pipeline.definition.mixing import PLAIN, Mix

_FN = "nvidia.dali.fn"
OPERATORS = ("superpose", "superpose_resident")


class FdtModule(ModuleType):
    """Without the operators until one of them is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATORS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}: it has {', '.join(OPERATORS)}")
        from fdt_pipeline.native.load import load

        load()
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}, though its library was loaded")
        return vars(self)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _with_mix(value) if name in OPERATORS else value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *OPERATORS})


def _with_mix(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with `mix` as an object of this package in place of its text."""

    @functools.wraps(operator)
    def superpose(*inputs: Any, mix: Any = "fdt", **arguments: Any) -> Any:
        if not isinstance(mix, str):
            arguments = _arguments_of(PLAIN if mix is None else mix, is_resident="pool" in arguments, **arguments)
        else:
            arguments["mix"] = mix
        return operator(*inputs, **arguments)

    return superpose


def _arguments_of(mix: Any, is_resident: bool, **arguments: Any) -> dict[str, Any]:
    """The operator's own arguments, with what the mixing says: how to mix, and what targets are where that is not
    given."""
    from fdt_pipeline.native.arguments import mix_argument
    from fdt_pipeline.native.pool import num_classes_of

    if not isinstance(mix, Mix):
        raise ValueError(f"mix must be an FDT, MixUp, CutMix, OneOf or None, got {mix!r}")
    drawn_from = "set" if is_resident else "ring" if arguments.get("ring") else "batch"
    if mix.partners not in (None, drawn_from):
        raise ValueError(
            f'partners="{mix.partners}", but this operator draws from the {drawn_from}: "set" is for '
            'superpose_resident, "ring" for superpose with ring=N, "batch" for superpose without'
        )
    num_classes = arguments.get("num_classes") or num_classes_of(arguments.get("pool"))
    text = {} if num_classes is None else {"mix": mix_argument(mix, num_classes)}  # without its pool it is refused
    return {"targets": mix.targets, **arguments, **text}


class _AfterImport(MetaPathFinder):
    """Gives `nvidia.dali.fn` its attribute `fdt` as soon as it is imported, by whomever."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FN:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _attach(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _attach(fn: ModuleType) -> None:
    if not hasattr(fn, "fdt"):
        module = FdtModule(f"{_FN}.fdt", "Full Distribution Training: superpose, superpose_resident.")
        sys.modules[module.__name__] = module
        fn.fdt = module  # type: ignore[attr-defined]


def install() -> None:
    """Once a process, by `import fdt_pipeline`."""
    if _FN in sys.modules:
        _attach(sys.modules[_FN])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
