"""Where a loader is in a run, as a checkpoint keeps it: a few numbers, and what they are numbers of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fdt_pipeline.definition.mixing import Mix
from fdt_pipeline.loader.mixes import MixSchedule, are_equal, describe_mix, described_mix
from fdt_pipeline.loader.order import Leg

VERSION = 3
_COUNTS = ("epoch", "batch", "num_batches")
_FIELDS = {*_COUNTS, "has_mix", "mix", "mix_next", "mixing_next", "legs", "world_size", "config"}


class OtherLoaderError(ValueError):
    """A state is of a loader with other data or options."""


@dataclass(frozen=True)
class Cursor:
    """Batch `batch` of an epoch comes next; mix: what is mixed in it; legs: what other numbers of ranks have done of it
    (streaming)."""

    epoch: int = 0
    batch: int = 0
    mix: Mix | None = None
    legs: tuple[Leg, ...] = ()

    @property
    def batches_before(self) -> int:
        return sum(leg.batches for leg in self.legs)

    def is_same(self, other: Cursor) -> bool:
        return replace(self, mix=None) == replace(other, mix=None) and are_equal(self.mix, other.mix)

    def with_leg(self, current: Leg) -> tuple[Leg, ...]:
        """All legs, with the current one as far as it has come; current's own `batches` does not count."""
        return (*self.legs, replace(current, batches=self.batch - self.batches_before))


def pack_state(
    cursor: Cursor,
    has_mix: bool,
    current: Leg | None,
    schedule: MixSchedule,
    num_batches: int,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """JSON values. has_mix: otherwise the epoch is not begun, and the schedule will say what it has; schedule: of the
    epochs from the next one on; current: this loader's own leg (streaming)."""
    legs = cursor.with_leg(current) if current and cursor.batch else ()
    return {
        "version": VERSION,
        "epoch": cursor.epoch,
        "batch": cursor.batch,
        "num_batches": num_batches,
        "has_mix": has_mix,
        "mix": describe_mix(cursor.mix, schedule.context.num_classes) if has_mix else None,
        "mix_next": schedule.described(),
        "mixing_next": schedule.is_on,
        "legs": [asdict(leg) for leg in legs],
        "world_size": current.world_size if current else None,
        "config": dict(config),
    }


def mode_of(state: Mapping[str, Any]) -> Any:
    """The mode of the loader that gave this state. ValueError for what is no state."""
    _checked(state)
    return state["config"].get("mode")


def epoch_of(state: Mapping[str, Any]) -> int:
    """The epoch to begin where nothing but that can be taken from a state: its own, or the next if it had ended.
    ValueError where it says none."""
    epoch, batch, num_batches = (state.get(name) for name in _COUNTS)
    if not isinstance(epoch, int) or not 0 <= epoch < 2**32 - 1:
        raise ValueError(f"expected a state with an epoch, got {epoch!r}")
    return epoch + (isinstance(batch, int) and isinstance(num_batches, int) and batch >= num_batches > 0)


def unpack_state(
    state: Mapping[str, Any], current: Leg | None, schedule: MixSchedule, num_batches: int, config: Mapping[str, Any]
) -> Cursor:
    """Where to go on; the schedule becomes the state's. ValueError for what is no state; OtherLoaderError, naming every
    field that differs, for the state of another loader."""
    legs = [leg for leg in _checked(state) if leg.batches]
    check_same_config(state["config"], config, state["world_size"], current)
    if state["batch"] > num_batches:
        raise OtherLoaderError(f"batch of the state is {state['batch']}, but an epoch has {num_batches}")
    if legs and current and replace(legs[-1], batches=0) == replace(current, batches=0):
        legs = legs[:-1]
    context, epoch = schedule.context, state["epoch"]
    try:
        next_mix = described_mix(state["mix_next"], context, lambda: schedule.mix)
        mix = described_mix(state["mix"], context, lambda: schedule.given(epoch))
    except ValueError as error:
        raise OtherLoaderError(str(error)) from error
    assert mix is None or isinstance(mix, Mix)
    schedule.mix, schedule.is_on = next_mix, state["mixing_next"]
    return Cursor(epoch, state["batch"], mix, tuple(legs))


def check_same_config(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], world_size: int | None, current: Leg | None
) -> None:
    # Other ranks have batches of another size, and so may need another ring.
    ignored = {"ring"} if current and world_size != current.world_size else set()
    differing = [
        f"{name} is {_shown(theirs, name)} there and {_shown(ours, name)} here"
        for name in {**ours, **theirs}
        if name not in ignored and theirs.get(name) != ours.get(name)
    ]
    if differing:
        shards = " (shards: the sha256 of the set's manifest)" if theirs.get("shards") != ours.get("shards") else ""
        raise OtherLoaderError(f"the state is of another loader: {'; '.join(differing)}{shards}")


def _shown(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "not said"


def _checked(state: Mapping[str, Any]) -> list[Leg]:
    """The legs of a state that is one."""
    if not isinstance(state, Mapping) or "version" not in state:
        raise ValueError(f"expected what state_dict() of an FDTLoader gave, got {type(state).__name__}")
    if state["version"] != VERSION:
        raise OtherLoaderError(
            f"the state is of version {state['version']!r}, and this release of fdt_pipeline writes version {VERSION}"
        )
    missing = _FIELDS - state.keys()
    if missing:
        raise ValueError(f"expected what state_dict() of an FDTLoader gave, without: {', '.join(sorted(missing))}")
    for name in _COUNTS:
        value = state[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ValueError(f"{name} of the state must be in [0, 2**32), got {value!r}")
    if not isinstance(state["config"], Mapping) or not all(isinstance(leg, Mapping) for leg in state["legs"]):
        raise ValueError("expected what state_dict() of an FDTLoader gave, but config or legs are something else")
    try:
        return [Leg(**leg) for leg in state["legs"]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"legs of the state: {error}") from None
