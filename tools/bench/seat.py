"""A contender in a process of its own, seen from both sides: memory, CPU time, threads and caches are its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from .entries import find_entry
from .errors import FailedError, RefusedError
from .sitting import Sitting
from .spec import Spec
from .task import NotInstalledError

if TYPE_CHECKING:
    from .checks import CheckSets

FAREWELL = 20.0  # seconds to end in


class Seat(Protocol):
    """What a race asks of a contender; FailedError, RefusedError or NotInstalledError where it cannot."""

    def start(self, seconds: float) -> dict[str, Any]: ...

    def turn(self, seconds: float) -> dict[str, Any]: ...

    def close(self) -> None: ...


class SeatProcess:
    """A spawned process, which leads a process group so that what it starts ends with it."""

    def __init__(self, spec: Spec) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, spec), name=spec.contender)
        self._process.start()
        theirs.close()

    def start(self, seconds: float) -> dict[str, Any]:
        """Set up, and the first epoch, for at most `seconds`."""
        return self._ask("start", seconds)

    def check(self, sets: CheckSets) -> dict[str, Any]:
        return self._ask("check", sets)

    def turn(self, seconds: float) -> dict[str, Any]:
        return self._ask("turn", seconds)

    def _ask(self, verb: str, argument: Any) -> dict[str, Any]:
        try:
            self._connection.send((verb, argument))
            kind, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(FAREWELL)
            raise FailedError(f"its process ended with exit code {self._process.exitcode}") from None
        if kind == "done":
            return answer
        raise {"refused": RefusedError, "not installed": NotInstalledError}.get(kind, FailedError)(answer)

    def close(self) -> None:
        """Asks it to end, and ends it where it does not."""
        self._connection.close()
        self._process.join(FAREWELL)
        if self._process.pid is not None:
            _end_group(self._process.pid)
        self._process.kill()
        self._process.join()
        self._process.close()


def _end_group(leader: int) -> None:
    """Whatever is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def serve(connection: Connection, spec: Spec) -> None:
    """The process: does what it is asked until the other end closes."""
    os.setsid()  # a Ctrl-C at the terminal is for the parent, which then closes us
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # results go to stdout, and what libraries print does not
    with closing(Sitting(spec)) as sitting:
        verbs: dict[str, Callable[[Any], dict[str, Any]]] = {
            "start": sitting.start,
            "turn": sitting.turn,
            "check": partial(_check, spec),
        }
        while True:
            try:
                verb, argument = connection.recv()
            except EOFError:
                return
            answer = _answer(verbs[verb], argument)
            try:
                connection.send(answer)
            except BrokenPipeError:  # the parent was interrupted meanwhile
                return


def _check(spec: Spec, sets: CheckSets) -> dict[str, Any]:
    from .checks import check

    return check(find_entry(spec.contender), spec.task, sets)


def _answer(verb: Callable[[Any], dict[str, Any]], argument: Any) -> tuple[str, Any]:
    try:
        return "done", verb(argument)
    except RefusedError as error:
        return "refused", str(error)
    except NotInstalledError as error:
        return "not installed", str(error)
    except Exception as error:  # whatever a contender raises: it is told, and the others go on
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
