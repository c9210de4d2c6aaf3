"""Tables and numbers of a report as HTML."""

from collections.abc import Sequence
from html import escape

Cell = str | None


def number(value: float | None, decimals: int, sign: str = "") -> Cell:
    """Return a value in decimals; None stays None."""
    return None if value is None else f"{value:{sign}.{decimals}f}"


def make_table(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], *, raw_last: bool = False
) -> str:
    """Return a table; None is shown as a dash; `raw_last`: the last column is HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for row in rows:
        texts = ["–" if cell is None else escape(cell) for cell in row]
        if raw_last:
            texts[-1] = row[-1]
        body.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    return (
        f"<div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
