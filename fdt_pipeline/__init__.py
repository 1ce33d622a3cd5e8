"""Full Distribution Training (FDT) in the data loader. Start with `superposition.py`, then `pipeline.py`."""
