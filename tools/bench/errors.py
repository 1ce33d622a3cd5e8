"""Why a contender is not measured."""

from __future__ import annotations


class RefusedError(Exception):
    """It does not do what it is asked for; the message says what was expected and what came."""


class FailedError(Exception):
    """It raised, or its process died; the message says how."""
