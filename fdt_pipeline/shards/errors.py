"""What is raised when shards are not what their manifest says."""

from __future__ import annotations


class ShardError(ValueError):
    """Names the shard, what was expected and what was found."""
