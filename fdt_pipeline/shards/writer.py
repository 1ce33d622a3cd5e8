"""Write a source as shards: shuffled, indexed, hashed, and whole or not at all."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image

from ..sources.source import Source
from ..storage import Folder, open_folder
from ..storage.atomic import remedy
from ..storage.remote import RemoteFolder
from .codec import ShardingOptions
from .folder import MANIFEST_NAME, check_is_folder, read_manifest, shard_files
from .manifest import Manifest, shard_name
from .pixel_statistics import PixelStatistics
from .plan import Plan, planned
from .progress import Progress
from .running import Engine, OnBad, RunOptions, run_tasks
from .staging import Staging, alone
from .task import Record, SourceError, Work


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
    run = RunOptions(overwrite, resume, on_bad, workers, engine, progress)
    return write_plan(planned(source, options), open_folder(out), run)


def write_plan(plan: Plan, out: Folder, run: RunOptions) -> Manifest:
    """Do what `write_shards` does, for a plan."""
    check_vacant(out, run.overwrite, run.resume)
    with _explained(out):
        out.make()
        with alone(out):
            return _written(plan, Staging(out), run)


def _written(plan: Plan, staging: Staging, run: RunOptions) -> Manifest:
    """The manifest of the set in OUT, whatever of it is to be written yet."""
    finished: dict[int, Record] = {}
    if run.resume and staging.exists:
        staging.check_same(plan)
        if staging.is_moving:
            manifest = _finished_set(plan, staging.folder)
            staging.publish(manifest, staging.records(plan.num_tasks))
            return manifest
        staging.tidy()
        finished = staging.finished(plan, run.on_bad == "quarantine", Image.MAX_IMAGE_PIXELS)
    elif run.resume and staging.out.size(MANIFEST_NAME) is not None:
        manifest = _finished_set(plan, staging.out)
        staging.folder.remove_tree()  # what a run may have left that was killed while it tidied up
        return manifest
    else:
        staging.begin(plan)
    records = _records(plan, staging, finished, run)
    manifest = _manifest(plan, records)
    staging.publish(manifest, records)
    return manifest


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


def _finished_set(plan: Plan, folder: Folder) -> Manifest:
    """The manifest of the set in `folder`; ValueError if it is not the set that was asked for."""
    manifest, source = read_manifest(folder), plan.source
    asked = {
        "kind": source.kind,
        "split": source.split,
        "classes": source.classes,
        **vars(plan.options),
        "num_samples": len(source) + (len(plan.converted.quarantine) if plan.converted else 0),
    }
    found = {**vars(manifest), "num_samples": manifest.num_samples + len(manifest.quarantine)}
    for name, value in asked.items():
        if found[name] != value:
            raise ValueError(
                f"{folder.url}: holds a finished set of another kind: {name} is {found[name]!r}, asked for {value!r}; "
                "replace it with --overwrite, or choose another folder"
            )
    return manifest


def _records(plan: Plan, staging: Staging, finished: dict[int, Record], run: RunOptions) -> list[Record]:
    """Do the tasks that are not finished; the records of all, in their order."""
    records = dict(finished)
    done = sum(plan.num_samples(number) for number in finished)
    missing = (plan.task(number) for number in range(plan.num_tasks) if number not in finished)
    work = Work(plan.fingerprint, plan.options, staging.folder, run.on_bad == "quarantine", Image.MAX_IMAGE_PIXELS)
    try:
        with closing(run_tasks(missing, work, run, plan.num_tasks)) as fresh:
            for record in fresh:
                records[record.task] = record
                done += plan.num_samples(record.task)
                if run.progress:
                    run.progress(done, len(plan.order))
    except BaseException:
        if records:
            staging.tidy()
        else:
            staging.folder.remove_tree()
        raise
    return [records[number] for number in range(plan.num_tasks)]


def _manifest(plan: Plan, records: list[Record]) -> Manifest:
    source, options, statistics = plan.source, plan.options, PixelStatistics()
    for record in records:
        if record.pixel_counts:
            statistics.add(np.array(record.pixel_counts, np.int64))
    quarantine = [bad for record in records for bad in record.quarantine]
    if statistics.counts is None:
        raise ValueError(f"none of the {len(quarantine)} samples is good: {quarantine[0].key}: {quarantine[0].reason}")
    samples_per_class = tuple(map(sum, zip(*(record.samples_per_class for record in records), strict=True)))
    extensions = sum((Counter(record.samples_per_extension) for record in records), Counter[str]())
    shapes = {tuple(shape) for record in records for shape in record.shapes}
    parts = [part for record in records for part in record.parts]
    keys = {key: name for record in records for key, name in record.keys.items()}
    if plan.converted:
        keys, quarantine = {**plan.converted.keys, **keys}, [*plan.converted.quarantine, *quarantine]
    return Manifest(
        kind=source.kind,
        split=source.split,
        classes=source.classes,
        num_samples=sum(samples_per_class),
        samples_per_class=samples_per_class,
        shape=shapes.pop() if len(shapes) == 1 else None,  # type: ignore[arg-type]  # (h, w, c)
        channels=len(statistics.mean),
        **vars(options),
        mean=statistics.mean,
        std=statistics.std,
        shards=tuple(replace(part, name=shard_name(index)) for index, part in enumerate(parts)),
        keys=dict(sorted(keys.items())),
        samples_per_extension=dict(sorted(extensions.items())),
        quarantine=tuple(sorted(quarantine, key=lambda bad: bad.position)),
    )


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
