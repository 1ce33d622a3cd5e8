"""What all examples share: the command line, and a network so small that each of them runs in seconds on a CPU."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from torch import nn

SHARDS = {"shards": "folder with train/ and test/, such as runs/demo/shards"}


def arguments(
    description: str,
    checkpoint: str | None = None,
    folders: dict[str, str] = SHARDS,
    epochs: int = 1,
    **options: int | str,
) -> Namespace:
    """folders (names, with what each is), epochs, steps (None for all), checkpoint where the example keeps one; and
    options, each given with its default."""
    parser = ArgumentParser(description=description.partition("\n")[0])
    for name, meaning in folders.items():
        parser.add_argument(name, type=Path, help=meaning)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--steps", type=int, help="stop after so many, in mid-epoch as well")
    if checkpoint:
        parser.add_argument("--checkpoint", type=Path, default=checkpoint, help="where a run is kept, and goes on from")
    for name, default in options.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help="(default: %(default)s)")
    return parser.parse_args()


def small_network(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * 32, num_classes)),
    )
