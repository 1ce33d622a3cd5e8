"""What is raised when shards are not what their manifest says, or cannot be made of a source."""

from __future__ import annotations


class ShardError(ValueError):
    """Names the shard, what was expected and what was found."""


class BadSampleError(ValueError):
    """A sample that cannot be written: where it is in the source, what it is called there, and why not."""

    def __init__(self, position: int, key: str, reason: str) -> None:
        super().__init__(position, key, reason)
        self.position, self.key, self.reason = position, key, reason

    def __str__(self) -> str:
        return (
            f"sample {self.position} of the source ({self.key}): {self.reason}; fix or remove it, or leave it out with "
            '--on-bad quarantine (on_bad="quarantine")'
        )


class SourceError(OSError):
    """A sample could not be read for a reason that is not its own, such as a disk or a network that fails."""


class WorkerError(RuntimeError):
    """A worker process ended without a word."""
