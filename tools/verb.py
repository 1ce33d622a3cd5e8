"""What every verb's parser has in common: a description, and an example to copy."""

from __future__ import annotations

import argparse
from typing import Any


def verb_parser(verbs: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser for `python -m tools NAME`, added to argparse's subparsers; texts are printed as they are."""
    return verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
