"""A contender in a process of its own, seen from both sides: memory, CPU time, threads and caches are its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from .entries import CountedBatches, find_entry
from .errors import FailedError, RefusedError
from .sitting import Sitting
from .spec import TIMEOUT, Spec
from .task import NotInstalledError

if TYPE_CHECKING:
    from .checks import CheckSets

FAREWELL = 20.0  # seconds to end in


class Seat(Protocol):
    """What a race asks of a contender; FailedError, RefusedError or NotInstalledError where it cannot.

    `close` raises FailedError where it had to be stopped."""

    def start(self, seconds: float) -> dict[str, Any]: ...

    def turn(self, seconds: float) -> dict[str, Any]: ...

    def close(self) -> None: ...


class SeatProcess:
    """A spawned process, which leads a process group so that what it starts ends with it.

    timeout: seconds without a batch after which it is stopped and FailedError raised; found after at most twice that.
    """

    def __init__(self, spec: Spec, timeout: float = TIMEOUT) -> None:
        context = multiprocessing.get_context("spawn")
        self.timeout = timeout
        self._connection, theirs = context.Pipe()
        self._batches = context.Value("Q", lock=False)
        self._process = context.Process(target=serve, args=(theirs, spec, self._batches), name=spec.contender)
        self._process.start()
        theirs.close()

    @property
    def batches(self) -> int:
        """How many it has given so far."""
        return self._batches.value

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
            self._wait()
            kind, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(FAREWELL)
            raise FailedError(f"its process ended with exit code {self._process.exitcode}") from None
        if kind == "done":
            return answer
        raise {"refused": RefusedError, "not installed": NotInstalledError}.get(kind, FailedError)(answer)

    def _wait(self) -> None:
        """Until there is an answer, as long as batches come meanwhile."""
        before = self.batches
        while not self._connection.poll(self.timeout):
            if self.batches == before:
                self._kill()
                raise FailedError(
                    f"it gave no batch for {self.timeout:g} s and was stopped; --timeout S waits longer, such as for "
                    "the first run on a large set, where a contender writes its own format"
                )
            before = self.batches

    def close(self) -> None:
        """Asks it to end; kills it where it does not, and raises FailedError."""
        self._connection.close()
        self._process.join(FAREWELL)
        hangs = self._process.exitcode is None
        self._kill()
        self._process.close()
        if hangs:
            raise FailedError(f"it did not end within {FAREWELL:g} s of being closed, and was stopped")

    def _kill(self) -> None:
        """The process, and whatever it has started."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # before it leads a group
        self._process.join()


def serve(connection: Connection, spec: Spec, batches: ctypes.c_uint64) -> None:
    """The process: does what it is asked until the other end closes. batches: counted up with each."""
    os.setsid()  # a Ctrl-C at the terminal is for the parent, which then closes us
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # results go to stdout, and what libraries print does not
    with closing(Sitting(spec, batches)) as sitting:
        verbs: dict[str, Callable[[Any], dict[str, Any]]] = {
            "start": sitting.start,
            "turn": sitting.turn,
            "check": partial(_check, spec, batches),
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


def _check(spec: Spec, batches: ctypes.c_uint64, sets: CheckSets) -> dict[str, Any]:
    from .checks import check

    entry = find_entry(spec.contender)
    counted = replace(entry, make=lambda task: CountedBatches(entry.make(task), batches))
    return check(counted, spec.task, sets)


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
