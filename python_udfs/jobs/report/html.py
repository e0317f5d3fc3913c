"""What the page is made of: sections of figures, tables, messages. All that is no Markup is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart or table: what to see, how to read it, the drawing, its colours by CSS class, its queries."""

    title: str
    body: Markup
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()
    sql: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its figures; `id` is the anchor."""

    id: str
    title: str
    lead: str
    figures: Sequence[Figure] = field(default_factory=list)


def table(head: str, align: str, rows: Sequence[Sequence[str | Markup]]) -> Markup:
    """An HTML table.

    Args:
        head: names of the columns, separated by ` | `.
        align: one letter a column: l, or r for numbers.
        rows: the cells; one that is Markup is a whole `<td>`, the others are escaped.
    """

    def css(i: int) -> str:
        return ' class="r"' if align[i] == "r" else ""

    top = Markup("").join(Markup(f"<th{css(i)}>{{}}</th>").format(h) for i, h in enumerate(head.split(" | ")))
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                cell if isinstance(cell, Markup) else Markup(f"<td{css(i)}>{{}}</td>").format(cell)
                for i, cell in enumerate(row)
            )
        )
        for row in rows
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(top, body)


def bad(cell: str) -> Markup:
    """A number that asks for attention."""
    return Markup('<td class="r bad">{}</td>').format(cell)


def empty(message: str) -> Markup:
    """What to run when there is nothing to draw. Words in backticks are commands."""
    parts = message.split("`")
    inner = Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts))
    return Markup('<p class="empty">{}</p>').format(inner)
