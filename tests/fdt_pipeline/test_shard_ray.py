"""Sharding on a Ray cluster: a real one of several nodes on this machine, in a process of its own."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.folders import content
from tests.peers import needs

pytestmark = pytest.mark.cluster

needs("ray")

NODE_DIES = """
import logging, os, sys
import ray
from ray.cluster_utils import Cluster
from fdt_pipeline.shards import write_shards
from tests.fdt_pipeline.test_shard_ray import slow_source

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    killed = []

    def kill(done, total):
        # Once the node has read some samples of a task, and not all.
        print(done, total, flush=True)
        reads = open(os.environ["READ_LOG"]).read().count(node.node_id)
        if done >= 30 and reads % 10 and not killed:
            killed.append(node)
            cluster.remove_node(node, allow_graceful=False)

    os.chdir(os.path.dirname(sys.argv[1]))  # where the nodes are not
    write_shards(slow_source(), "ray", "png", samples_per_shard=10, engine="ray", progress=kill)
    assert killed, "the node outlived the run"
    ray.shutdown()
    cluster.shutdown()
"""


class Slow(ArraySource):
    """Takes long enough that a node has work when it dies, and notes which samples were asked for on which node."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if "READ_LOG" in os.environ:
            import ray

            with open(os.environ["READ_LOG"], "a") as log:
                log.write(f"{sample.key} {ray.get_runtime_context().get_node_id()}\n")
            time.sleep(0.1)
        return sample


def slow_source():
    images = np.random.default_rng(0).integers(0, 256, (160, 8, 8, 3), dtype=np.uint8)
    return Slow(images, np.arange(160) % 4)


def run(script, *arguments, **environment):
    """The checkout is on the path, so that the nodes can import the test's source, as they would a user's own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_DEDUP_LOGS": "0", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=variables)


def test_a_node_that_dies_in_mid_run_changes_no_byte(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(NODE_DIES)
    result = run(script, tmp_path / "ray", READ_LOG=str(tmp_path / "log"))
    assert result.returncode == 0, result.stdout + result.stderr
    reads = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines())
    assert len(reads) == 160
    assert max(reads.values()) > 1, "no task was under way on the node that died"
    write_shards(slow_source(), tmp_path / "local", "png", samples_per_shard=10)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


NO_CLUSTER = """
import os, sys
os.environ.pop("RAY_ADDRESS", None)
from fdt_pipeline.shards import write_shards
from tests.fdt_pipeline.test_shard_ray import slow_source
write_shards(slow_source(), sys.argv[1], engine="ray")
"""


def test_without_a_cluster_it_says_how_to_start_one(tmp_path):
    result = run("-c", NO_CLUSTER, tmp_path)
    assert "no Ray cluster to be found" in result.stderr
    assert "start one with `ray start --head`, or name it in RAY_ADDRESS" in result.stderr
