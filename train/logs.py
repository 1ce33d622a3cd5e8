"""A run's log: log.jsonl and TensorBoard, one record each for the same numbers."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from train.files import LOG, write_text


class RunLog:
    """Appends records {"step", "epoch", ...}. What a killed run logged after its checkpoint (step) is dropped."""

    def __init__(self, out: Path, resume_step: int) -> None:
        path = out / LOG
        records = _records(path)
        kept = [record for record in records if record["step"] <= resume_step] if resume_step else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=resume_step + 1)

    def add(self, kind: str, step: int, epoch: int, **values: float) -> None:
        record: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class NoLog(AbstractContextManager["NoLog"]):
    """In the place of a log, on the ranks that write no files."""

    def add(self, kind: str, step: int, epoch: int, **values: float) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a kill may have cut the last one."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not (isinstance(record, dict) and isinstance(record.get("step"), int)):
            break
        records.append(record)
    return records
