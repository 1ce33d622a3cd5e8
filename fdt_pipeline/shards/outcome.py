"""The result of a task on its way from another process: its record, or the error that ended it."""

from __future__ import annotations

import pickle
import traceback

from .errors import WorkerError
from .record import Record, record_from_json
from .task import Task, Work, run_task

Outcome = tuple[str, bytes]


def outcome(task: Task, work: Work) -> Outcome:
    """Run the task."""
    try:
        return "done", run_task(task, work).to_json().encode("ascii")
    except Exception as error:
        return "failed", _pickled(error)


def record_of(outcome: Outcome) -> Record:
    """The record; raises the error again if there is one, with the other process's traceback as its cause."""
    kind, data = outcome
    if kind == "done":
        return record_from_json(data.decode("ascii"))
    error, text = pickle.loads(data)
    raise error from WorkerError(f"in the worker:\n{text}")


def _pickled(error: Exception) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)  # some can be written, but not read again
    except Exception:
        return pickle.dumps((WorkerError(f"{type(error).__name__}: {error}"), text))
    return data
