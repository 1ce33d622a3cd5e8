"""What `write_shards` is asked for: all that the bytes of a set depend on, beside its source."""

from __future__ import annotations

from dataclasses import dataclass

from .codec import check_encoding
from .tar import RECORD


@dataclass(frozen=True)
class ShardingOptions:
    """encoding: raw, png, webp, jpg or keep. size: side that images are resized and cropped to, None for as they are.
    samples_per_shard, max_shard_bytes: whichever is reached first ends a tar; the bytes are those of the tar."""

    encoding: str = "raw"
    size: int | None = None
    samples_per_shard: int = 1000
    max_shard_bytes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        for name in ("size", "samples_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.size is not None and self.size > 16_383:
            raise ValueError(f"size must be at most 16383, the longest side of a WebP, got {self.size}")
        if self.max_shard_bytes is not None and self.max_shard_bytes < RECORD:
            raise ValueError(
                f"max_shard_bytes must be at least {RECORD}, the least a tar has, got {self.max_shard_bytes}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
