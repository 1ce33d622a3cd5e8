"""From shards to batches: `FDTLoader` and `fdt_pipeline(...)`. Read `graphs` first."""
