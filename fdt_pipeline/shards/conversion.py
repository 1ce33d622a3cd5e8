"""Write a set of shards again in another encoding: the same samples, keys and order, shard by shard."""

from __future__ import annotations

import numpy as np

from ..storage import open_folder
from .folder import Location, read_manifest
from .manifest import Manifest
from .options import ShardingOptions
from .plan import Plan
from .progress import Progress
from .reader import check_hashes
from .record import Gathered
from .running import Engine, choose_runner
from .shard_source import ShardSource
from .writer import OnBad, is_quarantine, write_plan


def convert_shards(
    location: Location,
    out: Location,
    encoding: str,
    *,
    size: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_bad: OnBad = "stop",
    workers: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> Manifest:
    """The set at `location` in another encoding, in the folder `out`; options as for `write_shards`.

    Where nothing is lost (raw, png, webp, without size) converting back gives the first set's bytes again. ShardError
    if the set is damaged: its hashes are checked first.
    """
    folder = open_folder(location)
    manifest = read_manifest(folder)
    if open_folder(out).url == folder.url:
        raise ValueError(f"{folder.url}: cannot be converted in place: choose another folder")
    quarantine = is_quarantine(on_bad)
    check_hashes(folder, manifest, workers)
    plan = _planned(ShardSource(folder, manifest), manifest, encoding, size)
    runner = choose_runner(engine, workers, plan.num_tasks)
    return write_plan(plan, open_folder(out), runner, overwrite, resume, quarantine, progress)


def _planned(source: ShardSource, manifest: Manifest, encoding: str, size: int | None) -> Plan:
    if encoding == "keep" and manifest.encoding == "raw":
        encoding = "raw"  # there are no files to keep
    options = ShardingOptions(
        encoding, size or manifest.size, manifest.samples_per_shard, manifest.max_shard_bytes, manifest.seed
    )
    carried = Gathered(keys=dict(manifest.keys), quarantine=list(manifest.quarantine))
    bounds = tuple(int(bound) for bound in source.bounds[1:])
    return Plan(source, options, np.arange(len(source)), bounds, carried)
