"""What all examples share: the command line, and a network so small that each of them runs in seconds on a CPU."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from torch import nn


def arguments(description: str, checkpoint: str | None = None) -> Namespace:
    """shards, epochs, steps (None for all), and checkpoint where the example keeps one."""
    parser = ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("shards", type=Path, help="folder with train/ and test/, such as runs/demo/shards")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="stop after so many, in mid-epoch as well")
    if checkpoint:
        parser.add_argument("--checkpoint", type=Path, default=checkpoint, help="where a run is kept, and goes on from")
    return parser.parse_args()


def small_network(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * 32, num_classes)),
    )
