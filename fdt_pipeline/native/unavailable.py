"""What is raised where the native engine cannot be had, and the switch that turns it off."""

from __future__ import annotations

import os

SWITCH = "FDT_PIPELINE_NATIVE"
WAY_OUT = 'engine="torch" runs without it; fdt-pipeline doctor says what is found here'


class NativeUnavailable(ImportError):  # noqa: N818 (it need not be an error: there is another engine)
    """The native engine cannot be used here; the message says why, and what to do."""


def is_turned_off() -> bool:
    """Whether $FDT_PIPELINE_NATIVE is 0; ValueError where it is neither 0, 1 nor empty."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} must be 0 (off) or 1 (on, as without it), got {value!r}")
    return value == "0"


def require_turned_on() -> None:
    if is_turned_off():
        raise NativeUnavailable(f'the native engine is turned off by {SWITCH}=0: unset it, or use engine="torch"')
