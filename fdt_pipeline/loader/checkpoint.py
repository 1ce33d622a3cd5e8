"""Where a loader is in a run, as a checkpoint keeps it: a few numbers, and what they are numbers of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from fdt_pipeline.definition.superposition import FDT
from fdt_pipeline.loader.order import Leg

VERSION = 2
_SERIES_ROWS = 64  # sums of up to so many images tell one series from another


@dataclass(frozen=True)
class Cursor:
    """Batch `batch` of an epoch comes next; mixing: whether FDT is on in it; legs: what other numbers of ranks have
    done of it (streaming)."""

    epoch: int = 0
    batch: int = 0
    mixing: bool = True
    legs: tuple[Leg, ...] = ()

    @property
    def batches_before(self) -> int:
        return sum(leg.batches for leg in self.legs)

    def with_leg(self, current: Leg) -> tuple[Leg, ...]:
        """All legs, with the current one as far as it has come; current's own `batches` does not count."""
        return (*self.legs, replace(current, batches=self.batch - self.batches_before))


def pack_state(cursor: Cursor, current: Leg | None, mixing: bool, config: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values. mixing: what holds from the next epoch on; current: this loader's own leg (streaming)."""
    legs = cursor.with_leg(current) if current and cursor.batch else ()
    return {
        "version": VERSION,
        "epoch": cursor.epoch,
        "batch": cursor.batch,
        "mixing": cursor.mixing,
        "mixing_next": mixing,
        "legs": [asdict(leg) for leg in legs],
        "world_size": current.world_size if current else None,
        "config": dict(config),
    }


def mode_of(state: Mapping[str, Any]) -> Any:
    """The mode of the loader that gave this state. ValueError for what is no state."""
    _checked(state)
    return state["config"].get("mode")


def unpack_state(
    state: Mapping[str, Any], current: Leg | None, num_batches: int, config: Mapping[str, Any]
) -> tuple[Cursor, bool]:
    """-> (cursor, mixing from the next epoch on). ValueError for what is no state, and for the state of another loader,
    naming every field that differs."""
    legs = [leg for leg in _checked(state) if leg.batches]
    check_same_config(state["config"], config, state["world_size"], current)
    if state["batch"] > num_batches:
        raise ValueError(f"batch of the state is {state['batch']}, but an epoch has {num_batches}")
    if legs and current and replace(legs[-1], batches=0) == replace(current, batches=0):
        legs = legs[:-1]
    return Cursor(state["epoch"], state["batch"], state["mixing"], tuple(legs)), state["mixing_next"]


def check_same_config(theirs: Mapping[str, Any], ours: Mapping[str, Any], world_size: int, current: Leg | None) -> None:
    other_ranks = bool(current and world_size != current.world_size)
    ignored = {"mix_window"} if other_ranks else set()  # it may depend on the number of ranks
    names = [name for name in {**ours, **theirs} if name not in ignored]
    differing = [
        f"{name} is {_shown(theirs, name)} there and {_shown(ours, name)} here"
        for name in names
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise ValueError(f"the state is of another loader: {'; '.join(differing)}")


def describe_fdt(fdt: FDT | None, num_classes: int) -> dict[str, Any] | None:
    """JSON values that tell two mixings of num_classes classes apart; a series by its weights, so that one without a
    repr of its own is known again in another process."""
    if fdt is None:
        return None
    described = {field.name: getattr(fdt, field.name) for field in fields(fdt)}
    described = {name: value.item() if isinstance(value, np.generic) else value for name, value in described.items()}
    most = min(fdt.most_images(num_classes), _SERIES_ROWS)  # never more than a plan has: a table may end there
    rows = [np.asarray(fdt.series.weights(k), np.float32) for k in range(1, most + 1)]
    digest = hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()[:12]
    return {**described, "series": f"{type(fdt.series).__name__}, weights {digest}"}


def _shown(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "not said"


def _checked(state: Mapping[str, Any]) -> list[Leg]:
    """The legs of a state that is one."""
    if not isinstance(state, Mapping) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"expected what state_dict() of an FDTLoader gave, of version {VERSION}, got {found!r}")
    missing = {"epoch", "batch", "mixing", "mixing_next", "legs", "world_size", "config"} - state.keys()
    if missing:
        raise ValueError(f"expected what state_dict() of an FDTLoader gave, without: {', '.join(sorted(missing))}")
    for name in ("epoch", "batch"):
        value = state[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ValueError(f"{name} of the state must be in [0, 2**32), got {value!r}")
    if not isinstance(state["config"], Mapping) or not all(isinstance(leg, Mapping) for leg in state["legs"]):
        raise ValueError("expected what state_dict() of an FDTLoader gave, but config or legs are something else")
    try:
        return [Leg(**leg) for leg in state["legs"]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"legs of the state: {error}") from None
