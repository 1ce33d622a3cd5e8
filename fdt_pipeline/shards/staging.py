"""OUT/.sharding: where a run writes, so that OUT has either a whole set or what was there before.

    plan.json           the fingerprint of the plan
    task-000003-0000.tar, .idx, task-000003.json     of each finished task; the record comes last
    _info.json, manifest.json     the set is complete and is being moved to OUT

Every file appears whole, so a run may be killed at any moment: a resumed run does the tasks without a record, or
goes on moving.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ..storage import Folder
from ..storage.atomic import sha256_of
from .folder import MANIFEST_NAME, STAGING_NAME, shard_files
from .manifest import Manifest, Shard
from .plan import Plan
from .record import Record, record_from_json
from .task import Task, record_name, source_state

PLAN_NAME = "plan.json"
_MOVES_AT_ONCE = 8  # of an object store, where each is a copy


class Staging:
    """The staging folder of the folder `out`."""

    def __init__(self, out: Folder) -> None:
        self.out = out
        self.folder = out.folder(STAGING_NAME)

    def begin(self, fingerprint: str) -> None:
        """Start a run; what an earlier one has left is removed."""
        self.folder.remove_tree()
        self.folder.make()
        self._write_plan({"plan": fingerprint})

    def _write_plan(self, content: dict[str, Any]) -> None:
        with self.folder.writing(PLAN_NAME) as file:
            file.write(json.dumps(content).encode("ascii"))

    def _read_plan(self) -> dict[str, Any]:
        """What plan.json says; {} if it is missing or broken."""
        try:
            content = json.loads(self.folder.read(PLAN_NAME))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def exists(self) -> bool:
        return self.folder.size(PLAN_NAME) is not None

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the plan that was begun; None if it cannot be read."""
        return self._read_plan().get("plan")

    @property
    def is_moving(self) -> bool:
        return self.folder.size(MANIFEST_NAME) is not None

    @property
    def is_moved(self) -> bool:
        """Whether the whole set is in OUT, and only this folder is left to remove."""
        return not self.is_moving and bool(self._read_plan().get("moved"))

    def end(self) -> None:
        """The plan goes first: without it, what is left is not taken for an unfinished run."""
        self.folder.remove(PLAN_NAME)
        self.folder.remove_tree()

    def tidy(self) -> None:
        """Remove the files that killed processes have not finished."""
        for name in self.folder.names():
            if name.startswith(".") and name.endswith(".tmp"):
                self.folder.remove(name)

    def finished(self, plan: Plan, quarantine: bool) -> dict[int, Record]:
        """The records of the tasks whose source files and tars are still what they were; without `quarantine`, those
        without bad samples."""
        names = set(self.folder.names())
        tasks = (plan.task(number) for number in range(plan.num_tasks) if record_name(number) in names)
        found = ((task, self.record(task.record_name)) for task in tasks)
        kept = ((task, record) for task, record in found if record and (quarantine or not record.gathered.quarantine))
        return {task.number: record for task, record in kept if self._holds(task, record)}

    def record(self, name: str) -> Record | None:
        try:
            return record_from_json(self.folder.read(name).decode("ascii"))
        except (ValueError, KeyError, TypeError):  # written by another version, or damaged
            return None

    def _holds(self, task: Task, record: Record) -> bool:
        if (record.plan, record.task) != (self.fingerprint, task.number) or record.state != source_state(task.samples):
            return False
        return all(
            self._has(part.name, part.sha256) and self._has(part.index_name, part.index_sha256) for part in record.parts
        )

    def _has(self, name: str, sha256: str) -> bool:
        """Whether the file is whole. An object store guards its own bytes; a disk may have lost power."""
        if self.folder.size(name) is None:
            return False
        if self.folder.local is None:
            return True
        with self.folder.open(name) as file:
            return sha256_of(file) == sha256

    def publish(self, manifest: Manifest, parts: list[Shard]) -> None:
        """Move the set to OUT, where it replaces an older one. Interrupted anywhere, a resumed run goes on with it."""
        if manifest.encoding != "raw":
            with self.folder.writing(TIMM_INFO_NAME) as file:
                file.write(timm_info_json({"": manifest}))
        with self.folder.writing(MANIFEST_NAME) as file:
            file.write(manifest.to_json().encode("ascii"))
        self.move(manifest, parts)

    def move(self, manifest: Manifest, parts: list[Shard]) -> None:
        self.out.remove(MANIFEST_NAME)
        self.out.sync()
        waiting = set(self.folder.names())
        moves = [
            (f"{STAGING_NAME}/{old}", new)
            for part, shard in zip(parts, manifest.shards, strict=True)
            for old, new in ((part.name, shard.name), (part.index_name, shard.index_name))
            if old in waiting  # the others are there already
        ]
        with ThreadPoolExecutor(1 if self.out.local else _MOVES_AT_ONCE) as pool:
            list(pool.map(lambda names: self.out.move(*names), moves))
        if TIMM_INFO_NAME in waiting:
            self.out.move(f"{STAGING_NAME}/{TIMM_INFO_NAME}", TIMM_INFO_NAME)
        elif manifest.encoding == "raw":
            self.out.remove(TIMM_INFO_NAME)
        listed = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
        for name in shard_files(self.out):
            if name not in listed:
                self.out.remove(name)
        self.out.sync()
        self._write_plan({"plan": self.fingerprint, "moved": True})
        self.out.move(f"{STAGING_NAME}/{MANIFEST_NAME}", MANIFEST_NAME)
        self.out.sync()
        self.end()


@contextmanager
def alone(out: Folder) -> Iterator[None]:
    """ValueError if another process is writing shards there. Object stores, which know no locks, are not checked."""
    if out.local is None:
        yield
        return
    descriptor = os.open(out.local, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Folder) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{out.url}: another process is writing shards there: wait for it, or choose another folder"
        ) from None
    except OSError:  # some shared file systems have no locks; there nobody looks
        return


TIMM_INFO_NAME = "_info.json"


def timm_info(sets: Mapping[str, Manifest]) -> dict[str, Any]:
    """The `_info.json` by which timm's webdataset reader knows a set: its splits, their tars and their lengths.

        timm.data.create_dataset("wds/photos", root="runs/photos", split="train", is_training=True, batch_size=64)

    sets: folder -> manifest, as seen from the folder of `_info.json`; "" is that folder itself.

    ValueError for raw shards, which hold arrays: timm leaves every sample of them out with a warning; and for two sets
    of one split.
    """
    splits: dict[str, dict[str, Any]] = {}
    for folder, manifest in sets.items():
        name = _split_name(folder, manifest)
        if manifest.encoding == "raw":
            raise ValueError(f"{folder or 'the set'}: timm reads jpg, png and webp, not raw: convert it to one of them")
        if name in splits:
            raise ValueError(f"{folder}: is a second set of the split {name!r}: expected one folder a split")
        splits[name] = _split(name, folder, manifest)
    return {"splits": splits}


def timm_info_json(sets: Mapping[str, Manifest]) -> bytes:
    return (json.dumps(timm_info(sets), indent=2) + "\n").encode("ascii")


def _split_name(folder: str, manifest: Manifest) -> str:
    """The name of a set's split; a set without splits is the one to train on."""
    return manifest.split or folder.rstrip("/").rpartition("/")[2] or "train"


def _split(name: str, folder: str, manifest: Manifest) -> dict[str, Any]:
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    return {
        "name": name,
        "num_samples": manifest.num_samples,
        "filenames": [prefix + shard.name for shard in manifest.shards],
        "shard_lengths": [shard.num_samples for shard in manifest.shards],
    }
