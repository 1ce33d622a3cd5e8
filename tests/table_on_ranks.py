"""`python -m train` with small subsets that are attacked 25 images at a time, as one of torchrun's processes:

torchrun --nproc-per-node 2 tests/table_on_ranks.py reproduce table1 ...
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from train.__main__ import main
from train.reproduce import chunked_attack, data

# The small scale from ROOT alone, smaller still, attacked 25 images at a time: (module, name, value).
SMALLER = (
    (data, "BUNDLED", {}),
    (data, "PER_CLASS", {"train": 20, "test": 8}),
    (chunked_attack, "BATCH_SIZE", {"cpu": 25}),
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    for change in SMALLER:
        setattr(*change)
    sys.exit(main(sys.argv[1:]))
