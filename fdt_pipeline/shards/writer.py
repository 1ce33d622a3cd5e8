"""Write a source as shards: shuffled, indexed, hashed, and whole or not at all."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Literal

from ..sources.source import Source
from ..storage import Folder, open_folder
from ..storage.atomic import remedy
from ..storage.remote import RemoteFolder
from .codec import EXTENSIONS
from .folder import MANIFEST_NAME, check_is_folder, read_manifest, shard_files
from .manifest import Manifest, Shard, shard_name
from .plan import Plan, ShardingOptions, planned
from .progress import Progress
from .record import Gathered, Record, merged
from .running import Engine, Runner, choose_runner
from .staging import Staging, alone
from .task import SourceError, Work, record_name

OnBad = Literal["stop", "quarantine"]


def write_shards(
    source: Source,
    out: str | os.PathLike[str] | Folder,
    encoding: str = "raw",
    seed: int = 0,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    progress: Progress | None = None,
    *,
    max_shard_bytes: int | None = None,
    size: int | None = None,
    resume: bool = False,
    on_bad: OnBad = "stop",
    workers: int = 1,
    engine: Engine = "local",
) -> Manifest:
    """Shards of the source in the folder `out`, a path or an fsspec URL, made if need be.

    encoding: "raw", "png", "webp" (lossless), "jpg" (quality 95) or "keep" (codec.py; raw where there are no files).
    size: side in pixels that images are resized and cropped to (`image_pixels.resized`). A tar ends after
    samples_per_shard samples, or before it would exceed max_shard_bytes. workers: processes of this machine; engine
    "ray": a Ray cluster instead. The same source, seed and options give the same bytes in every file, whatever writes
    them.

    Until all is written, `out` keeps what it has: new files lie in `out`/.sharding. If the run is killed, or fails,
    what is finished is kept there, and the same call with resume=True goes on; overwrite=True starts over, and replaces
    a set that is in `out` once the new one is whole.

    on_bad: at a sample that is no good image, "stop" raises BadSampleError, "quarantine" leaves it out and lists it
    in the manifest. SourceError if samples cannot be read for another reason; OSError if writing fails; ValueError for
    bad options, or where `out` holds shards already.
    """
    if encoding == "keep" and not hasattr(source, "read_file"):
        encoding = "raw"  # there are no files to keep
    options = ShardingOptions(encoding, size, samples_per_shard, max_shard_bytes, operator.index(seed))
    quarantine = is_quarantine(on_bad)
    plan = planned(source, options)
    runner = choose_runner(engine, workers, plan.num_tasks)
    return write_plan(plan, open_folder(out), runner, overwrite, resume, quarantine, progress)


def is_quarantine(on_bad: str) -> bool:
    """ValueError if it is neither "stop" nor "quarantine"."""
    if on_bad not in ("stop", "quarantine"):
        raise ValueError(f"on_bad must be one of stop, quarantine, got {on_bad!r}")
    return on_bad == "quarantine"


def write_plan(
    plan: Plan,
    out: Folder,
    runner: Runner,
    overwrite: bool,
    resume: bool,
    quarantine: bool,
    progress: Progress | None = None,
) -> Manifest:
    """Do what `write_shards` does, for a plan."""
    check_vacant(out, overwrite, resume)
    with _explained(out):
        out.make()
    with alone(out):
        staging = Staging(out)
        if resume and not staging.exists and out.size(MANIFEST_NAME) is not None:
            manifest = _finished_set(plan, out)
            staging.end()  # what a run may have left that was killed while it tidied up
            return manifest
        return _Run(plan, staging, runner, quarantine, progress).manifest(resume and staging.exists)


def check_vacant(out: Folder, overwrite: bool, resume: bool = False) -> None:
    """ValueError if `out` is a file, or holds shards or an unfinished run that may be neither replaced nor resumed."""
    if overwrite and resume:
        raise ValueError("--overwrite starts over and --resume goes on: choose one")
    if isinstance(out, RemoteFolder) and out.is_web:
        raise ValueError(f"{out.url}: a web server can only be read from; write to a path, or to s3://, gs://")
    check_is_folder(out)
    if out.local:
        for above in out.local.parents:
            check_is_folder(open_folder(above))
    if overwrite:
        return
    if Staging(out).exists:
        if not resume:
            raise ValueError(f"{out.url}: holds an unfinished run: go on with --resume, or start over with --overwrite")
    elif out.size(MANIFEST_NAME) is not None:
        if not resume:
            raise ValueError(f"{out.url}: holds shards already; replace them with --overwrite or choose another folder")
    elif shard_files(out):
        raise ValueError(
            f"{out.url}: holds shard files without {MANIFEST_NAME}, of another program or an old run; "
            "replace them with --overwrite or choose another folder"
        )


def _finished_set(plan: Plan, out: Folder) -> Manifest:
    """The manifest of the set in `out`; ValueError if it is not the set that was asked for."""
    manifest, options, source = read_manifest(out), plan.options, plan.source
    asked = {
        "kind": source.kind,
        "split": source.split,
        "classes": source.classes,
        "encoding": options.encoding,
        "size": options.size,
        "seed": options.seed,
        "samples_per_shard": options.samples_per_shard,
        "max_shard_bytes": options.max_shard_bytes,
    }
    found = {name: getattr(manifest, name) for name in asked}
    asked["num_samples"], found["num_samples"] = len(source), manifest.num_samples + len(manifest.quarantine)
    for name, value in asked.items():
        if found[name] != value:
            raise ValueError(
                f"{out.url}: holds a finished set of another kind: {name} is {found[name]!r}, asked for {value!r}; "
                "replace it with --overwrite, or choose another folder"
            )
    return manifest


class _Run:
    """From a plan to a manifest."""

    def __init__(
        self, plan: Plan, staging: Staging, runner: Runner, quarantine: bool, progress: Progress | None
    ) -> None:
        self.plan, self.staging, self.runner, self.progress = plan, staging, runner, progress
        self.fingerprint = plan.fingerprint
        self.work = Work(self.fingerprint, plan.options, staging.folder, quarantine)

    def manifest(self, resume: bool) -> Manifest:
        with _explained(self.staging.out):
            if resume:
                self._check_same_plan()
                self.staging.tidy()
            else:
                self.staging.begin(self.fingerprint)
        if resume and self.staging.is_moved:
            self.staging.end()
            return read_manifest(self.staging.out)
        if resume and self.staging.is_moving:
            return self._moved()
        records = self._records(self.staging.finished(self.plan, self.work.quarantine) if resume else {})
        manifest = _manifest(self.plan, records)
        with _explained(self.staging.out):
            self.staging.publish(manifest, _parts(records))
        return manifest

    def _check_same_plan(self) -> None:
        if self.staging.fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.staging.out.url}: the unfinished run there is of another source, or has other options: give "
                "the same, or start over with --overwrite"
            )

    def _moved(self) -> Manifest:
        """Finish a run that was killed while it moved its files."""
        manifest = read_manifest(self.staging.folder)
        found = (self.staging.record(record_name(number)) for number in range(self.plan.num_tasks))
        with _explained(self.staging.out):
            self.staging.move(manifest, _parts([record for record in found if record]))
        return manifest

    def _records(self, finished: dict[int, Record]) -> list[Record]:
        """The records of all tasks, in their order."""
        records = dict(finished)
        done = sum(len(self.plan.positions(number)) for number in finished)
        missing = (self.plan.task(number) for number in range(self.plan.num_tasks) if number not in finished)
        try:
            with _explained(self.staging.out), closing(self.runner(missing, self.work)) as fresh:
                for record in fresh:
                    records[record.task] = record
                    done += len(self.plan.positions(record.task))
                    if self.progress:
                        self.progress(done, len(self.plan.order))
        except BaseException:
            self._give_up(bool(records))
            raise
        return [records[number] for number in range(self.plan.num_tasks)]

    def _give_up(self, is_worth_keeping: bool) -> None:
        if is_worth_keeping:
            self.staging.tidy()
        else:
            self.staging.folder.remove_tree()


def _parts(records: list[Record]) -> list[Shard]:
    return [part for record in records for part in record.parts]


def _manifest(plan: Plan, records: list[Record]) -> Manifest:
    source, options = plan.source, plan.options
    total = merged(records)
    if total.statistics.counts is None:
        bad = total.quarantine[0]
        raise ValueError(f"none of the {len(total.quarantine)} samples is good: {bad.key}: {bad.reason}")
    has_several = len(EXTENSIONS[options.encoding]) > 1
    return Manifest(
        kind=source.kind,
        split=source.split,
        classes=source.classes,
        num_samples=total.samples_per_class.total(),
        samples_per_class=tuple(total.samples_per_class[label] for label in range(len(source.classes))),
        shape=_shape(total),
        channels=len(total.statistics.mean),
        encoding=options.encoding,
        seed=options.seed,
        samples_per_shard=options.samples_per_shard,
        max_shard_bytes=options.max_shard_bytes,
        size=options.size,
        mean=total.statistics.mean,
        std=total.statistics.std,
        shards=tuple(replace(part, name=shard_name(index)) for index, part in enumerate(_parts(records))),
        keys={**plan.carried.keys, **dict(sorted(total.keys.items()))},
        samples_per_extension=dict(sorted(total.samples_per_extension.items())) if has_several else None,
        quarantine=tuple(sorted([*plan.carried.quarantine, *total.quarantine], key=lambda bad: bad.position)),
    )


def _shape(total: Gathered) -> tuple[int, int, int] | None:
    if total.smallest != total.largest or total.smallest is None:
        return None
    height, width, channels = total.smallest
    return height, width, channels


@contextmanager
def _explained(out: Folder) -> Iterator[None]:
    """Give an OSError of writing (disk full, no permission, ...) the folder and what to do; errno stays."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        text = (
            f"could not write shards ({error.strerror or error}): no half-written file was left; {remedy(error)} or "
            "choose another folder; what is finished is kept for --resume"
        )
        if error.errno is None:
            raise OSError(f"{out.url}: {text}") from error
        raise OSError(error.errno, text, out.url) from error
