"""Tables of text, for a terminal or as Markdown: the first column to the left, the others to the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Row = Sequence[str]


def text_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines with aligned columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *others]).rstrip()


def markdown_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a Markdown table; the first row is the heading."""
    heading, *others = rows
    yield f"| {' | '.join(heading)} |"
    yield f"|---|{'---:|' * (len(heading) - 1)}"
    yield from (f"| {' | '.join(cells)} |" for cells in others)
