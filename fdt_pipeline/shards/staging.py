"""OUT/.sharding: where a run writes, so that OUT has either a whole set or what was there before.

    plan.sha256         the fingerprint of the plan
    task-000003-0000.tar, .idx, task-000003.json     of each finished task; the record comes last
    _info.json, manifest.json     the set is complete and is being moved to OUT

Every file appears whole, so a run may be killed at any moment: a resumed run does the tasks without a record, or
goes on moving.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..storage import Folder
from ..storage.atomic import sha256_of
from .folder import MANIFEST_NAME, STAGING_NAME, shard_files
from .manifest import TIMM_INFO_NAME, Manifest, timm_info_json
from .plan import Plan
from .task import Record, record_from_json, record_name, source_state

PLAN_NAME = "plan.sha256"
_MOVES_AT_ONCE = 8  # of an object store, where each is a copy


class Staging:
    """The staging folder of the folder `out`."""

    def __init__(self, out: Folder) -> None:
        self.out = out
        self.folder = out.folder(STAGING_NAME)

    @property
    def exists(self) -> bool:
        return self.is_moving or self.folder.size(PLAN_NAME) is not None

    @property
    def is_moving(self) -> bool:
        return self.folder.size(MANIFEST_NAME) is not None

    def begin(self, plan: Plan) -> None:
        """Start a run; what an earlier one has left is removed."""
        self.folder.remove_tree()
        self.folder.make()
        self._write(PLAN_NAME, plan.fingerprint)

    def check_same(self, plan: Plan) -> None:
        """ValueError if the unfinished run has another plan. At its very end it has none, but a manifest."""
        if self.folder.size(PLAN_NAME) is not None and self.folder.read(PLAN_NAME) != plan.fingerprint.encode("ascii"):
            raise ValueError(
                f"{self.out.url}: the unfinished run there is of another source, or has other options: give the same, "
                "or start over with --overwrite"
            )

    def tidy(self) -> None:
        """Remove the files that killed processes have not finished."""
        for name in self.folder.names():
            if name.startswith(".") and name.endswith(".tmp"):
                self.folder.remove(name)

    def finished(self, plan: Plan, quarantine: bool, max_pixels: int | None) -> dict[int, Record]:
        """The records of the tasks whose source files and tars are still what they were; those with bad samples with
        `quarantine` alone, and under this limit of pixels, as another may find other samples bad."""
        names, found = set(self.folder.names()), {}
        for number in range(plan.num_tasks):
            record = self._record(number) if record_name(number) in names else None
            if not record or (record.quarantine and not (quarantine and record.max_pixels == max_pixels)):
                continue
            if self._holds(record, plan, names):
                found[number] = record
        return found

    def _record(self, task: int) -> Record | None:
        """None if it is missing, was written by another version, or is damaged."""
        try:
            record = record_from_json(self.folder.read(record_name(task)).decode("ascii"))
            return record if record.task == task else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _holds(self, record: Record, plan: Plan, names: set[str]) -> bool:
        """Whether its files are whole. An object store guards their bytes; a disk may have lost power."""
        if record.plan != plan.fingerprint or record.state != source_state(plan.task(record.task)):
            return False
        files = {name: sha256 for part in record.parts for name, sha256 in part.files.items()}
        if self.folder.local is None or not files.keys() <= names:
            return files.keys() <= names
        return all(self._sha256(name) == sha256 for name, sha256 in files.items())

    def _sha256(self, name: str) -> str:
        with self.folder.open(name) as file:
            return sha256_of(file)

    def records(self, num_tasks: int) -> list[Record]:
        """The records of a run whose tasks are all finished."""
        return [record for number in range(num_tasks) if (record := self._record(number))]

    def publish(self, manifest: Manifest, records: list[Record]) -> None:
        """Move the set to OUT, where it replaces an older one. Interrupted anywhere, it can be called again."""
        if manifest.encoding != "raw":
            self._write(TIMM_INFO_NAME, timm_info_json({"": manifest}))
        self._write(MANIFEST_NAME, manifest.to_json())
        self.out.remove(MANIFEST_NAME)
        self.out.sync()
        waiting = set(self.folder.names())
        parts = [part for record in records for part in record.parts]
        moves = [
            (f"{STAGING_NAME}/{old}", new)
            for part, shard in zip(parts, manifest.shards, strict=True)
            for old, new in zip(part.files, shard.files, strict=True)
            if old in waiting  # the others are there already
        ]
        with ThreadPoolExecutor(1 if self.out.local else _MOVES_AT_ONCE) as pool:
            list(pool.map(lambda names: self.out.move(*names), moves))
        if manifest.encoding == "raw":
            self.out.remove(TIMM_INFO_NAME)
        else:
            self.out.move(f"{STAGING_NAME}/{TIMM_INFO_NAME}", TIMM_INFO_NAME)
        for name in set(shard_files(self.out)) - manifest.files.keys():
            self.out.remove(name)
        self.folder.remove(PLAN_NAME)  # without it, and without the manifest, what is left is no unfinished run
        self.folder.sync()
        self.out.sync()
        self.out.move(f"{STAGING_NAME}/{MANIFEST_NAME}", MANIFEST_NAME)
        self.out.sync()
        self.folder.remove_tree()

    def _write(self, name: str, text: str) -> None:
        with self.folder.writing(name) as file:
            file.write(text.encode("ascii"))


@contextmanager
def alone(out: Folder) -> Iterator[None]:
    """ValueError if another process is writing shards there. Object stores, which know no locks, are not checked."""
    if out.local is None:
        yield
        return
    descriptor = os.open(out.local, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out.url}: another process is writing shards there: wait for it, or choose another folder"
            ) from None
        except OSError:  # some shared file systems have no locks; there nobody looks
            pass
        yield
    finally:
        os.close(descriptor)
