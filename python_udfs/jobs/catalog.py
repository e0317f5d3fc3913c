"""`make catalog`: every feature with its formula and unit, as a table, and as a page with its values drawn."""

from __future__ import annotations

import csv
import math
import webbrowser
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from clickhouse_driver import Client
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.report import connected, parse_instrument, queries, svg, write_page
from python_udfs.jobs.report.charts import Row, instrument_of, name_of
from python_udfs.jobs.report.html import Figure, Section
from python_udfs.jobs.report.queries import Instrument
from python_udfs.settings import REPOSITORY, settings

SEED: Final = REPOSITORY / "seeds" / "feature_catalog.csv"
MODELS: Final = REPOSITORY / "dbt_project" / "models" / "features"
POINTS: Final = 300
WIDTH, HEIGHT = 226.0, 44.0


@dataclass(frozen=True, slots=True)
class Feature:
    """A row of `seeds/feature_catalog.csv`. `family`: the model that has the column `name`."""

    name: str
    family: str
    formula: str
    unit: str
    source: str
    priority: str
    cost: str
    owner: str


def read_catalog(path: Path = SEED) -> list[Feature]:
    """The catalogue, in its own order.

    Raises:
        UserError: a line has too few or too many fields; the message names it.
    """
    with path.open(newline="", encoding="utf-8") as file:
        features = []
        for number, row in enumerate(csv.DictReader(file), 2):
            if None in row or None in row.values():
                raise UserError(f"{path}, line {number}: expected {len(Feature.__slots__)} fields: {row}")
            features.append(Feature(**row))
    return features


def topics(features: Iterable[Feature], models: Path = MODELS) -> dict[str, list[Feature]]:
    """Features by topic: the folder of their model."""
    folder = {path.stem: path.parent.name for path in models.rglob("*.sql")}
    found: dict[str, list[Feature]] = {}
    for feature in features:
        found.setdefault(folder.get(feature.family, feature.family), []).append(feature)
    return dict(sorted(found.items()))


def _families(features: Sequence[Feature]) -> dict[str, list[Feature]]:
    found: dict[str, list[Feature]] = {}
    for feature in features:
        found.setdefault(feature.family, []).append(feature)
    return found


def _counted(family: str, n: int) -> str:
    return f"{family}: {n} feature{'s' if n > 1 else ''}"


def summary(features: Sequence[Feature]) -> Table:
    """One row per family, and the counts."""
    table = Table(title=f"{len(features)} features in {len(_families(features))} families")
    table.add_column("family (model)", no_wrap=True)
    table.add_column("features", justify="right")
    for title in ("sources", "priority", "cost"):
        table.add_column(title, overflow="fold")
    for topic, members in topics(features).items():
        table.add_row(f"[bold]{topic}[/]", f"[bold]{len(members)}[/]")
        for family, rows in _families(members).items():
            priorities = Counter(r.priority for r in rows)
            table.add_row(
                f"  {family}",
                str(len(rows)),
                ", ".join(sorted({s for r in rows for s in r.source.split("+")})),
                ", ".join(f"{p} {n}" for p, n in sorted(priorities.items())),
                "/".join(c for c in ("low", "medium", "high") if c in {r.cost for r in rows}),
            )
        table.add_section()
    return table


def details(features: Sequence[Feature]) -> Table:
    """One row per feature."""
    table = Table(show_lines=True)
    for title in ("feature", "unit", "formula", "source", "priority", "cost"):
        table.add_column(title, no_wrap=title == "feature", min_width=30 if title == "formula" else None)
    for f in features:
        table.add_row(f.name, f.unit, f.formula, f.source, f.priority, f.cost)
    return table


@dataclass(frozen=True, slots=True)
class Drawn:
    """The newest values of a feature, oldest first; nan for NULL. `names`: what 0, 1, … stand for, of a text."""

    values: list[float]
    names: list[str]


def _latest(c: Client, family: str, names: Sequence[str], instrument: Instrument) -> dict[str, Drawn]:
    """The newest values of a family's features."""
    types: dict[str, str] = dict(
        c.execute(
            "select name, type from system.columns where database = %(d)s and table = %(t)s",
            {"d": settings().database("features"), "t": family},
        )
    )
    if not set(names) <= set(types):
        raise UserError(f"the store has no {family} with {', '.join(names)}: run `make build`")
    order = "bucket_id" if "bucket_id" in types else "known_at"
    found = c.execute(
        f"select {', '.join(names)} from {settings().database('features')}.{family} where exchange = %(e)s "
        f"and market_type = %(m)s and symbol = %(s)s order by {order} desc limit {POINTS}",
        dict(zip("ems", instrument, strict=True)),
    )
    return {
        n: _drawn([row[i] for row in reversed(found)], is_text="String" in types[n])
        for i, n in enumerate(names)
    }


def _drawn(raw: Sequence[Any], *, is_text: bool) -> Drawn:
    names = sorted({v for v in raw if v is not None}) if is_text else []
    place = {name: float(i) for i, name in enumerate(names)}
    return Drawn([math.nan if v is None else place[v] if is_text else float(v) for v in raw], names)


def sparkline(values: Sequence[float], alt: str) -> Markup:
    """The values as a line from left to right, broken at nan; the range is that of the 1st to 99th percentile."""
    seen = sorted(v for v in values if math.isfinite(v))
    if not seen:
        return svg.drawing(WIDTH, HEIGHT, f"{alt}: no value", [svg.text(2, 26, "no value")], "small")
    low, high = svg.padded([seen[len(seen) // 100], seen[-1 - len(seen) // 100]])
    x = svg.Scale(0, max(len(values) - 1, 1), 2, WIDTH - 2)
    y = svg.Scale(low, high, HEIGHT - 3, 3)
    points = [(x(i), y(v)) if math.isfinite(v) else None for i, v in enumerate(values)]
    # a single value between two unknown ones would be no line
    alone = [
        svg.rect(p[0] - 0.6, p[1] - 0.6, 1.2, 1.2, "bar")
        for i, p in enumerate(points)
        if p and points[i - 1 : i] in ([], [None]) and points[i + 1 : i + 2] in ([], [None])
    ]
    return svg.drawing(WIDTH, HEIGHT, alt, [svg.polyline(points, "price"), *alone], "small")


def _card(feature: Feature, drawn: Drawn) -> Markup:
    values = drawn.values
    known = [v for v in values if math.isfinite(v)]
    share = 1 - len(known) / len(values) if values else 1
    if drawn.names:
        counts = Counter(drawn.names[int(v)] for v in known).most_common(3)
        stats = [(name, svg.count(n)) for name, n in counts]
    else:
        numbers = (min(known), sorted(known)[len(known) // 2], max(known)) if known else (None, None, None)
        stats = [(n, svg.number(v)) for n, v in zip(("min", "median", "max"), numbers, strict=True)]
    cells = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*pair) for pair in stats)
    return Markup(
        '<div class="card" id="{0}"><h4>{0}<span{1}>{2} NULL</span></h4>{3}<dl>{4}</dl>'
        '<p class="note">{5}</p><p class="note">{6} · {7} · {8} · cost {9}</p></div>'
    ).format(
        feature.name,
        Markup(' class="bad"') if share == 1 else "",
        svg.percent(share) if share else "0 %",
        sparkline(values, f"{feature.name} over the last {len(values)} rows"),
        cells,
        feature.formula,
        feature.unit,
        feature.source.replace("+", " + "),
        feature.priority,
        feature.cost,
    )


def write_catalog(
    features: Sequence[Feature], out: Path | None = None, instrument: Instrument | None = None
) -> Path:
    """Writes the page (default: `<data_dir>/catalog.html`) and returns its path.

    Args:
        instrument: whose values are drawn; by default the one with the most trades.

    Raises:
        UserError: the store has no buckets, or lacks a family.
    """
    out = out or settings().data_dir / "catalog.html"
    now = datetime.now(UTC)
    sections, empty = [], 0
    with connected() as c:
        known: list[Row] = db.rows(c, queries.bucket_counts())
        if not known:
            raise UserError("no buckets: run `make build`")
        shown = instrument or instrument_of(known[0])
        if shown not in [instrument_of(k) for k in known]:
            raise UserError(f"no buckets of {name_of(shown)}")
        for topic, members in topics(features).items():
            figures = []
            for family, rows in _families(members).items():
                values = _latest(c, family, [r.name for r in rows], shown)
                empty += sum(1 for v in values.values() if not any(map(math.isfinite, v.values)))
                cards = Markup("").join(_card(r, values[r.name]) for r in rows)
                figures.append(
                    Figure(_counted(family, len(rows)), Markup('<div class="cards">{}</div>').format(cards))
                )
            sections.append(Section(topic, topic.replace("_", " ").capitalize(), "", figures))
    counts = [
        (len(features), "features", f"{empty} without a value here" if empty else "each with values here"),
        (len(_families(features)), "families", f"{len(sections)} topics"),
        (sum(f.priority == "P0" for f in features), "of priority P0", "those to look at first"),
        (
            len({s for f in features for s in f.source.split("+")}),
            "kinds of raw data",
            "that they are made of",
        ),
    ]
    write_page(
        out,
        title="MarketPrism feature catalogue",
        subtitle=f"Each line: the newest {POINTS} rows of {name_of(shown)}, between the 1st and 99th percentile; gaps "
        f"are NULL · written {now:%Y-%m-%d %H:%M} UTC",
        tiles=[{"value": str(n), "name": name, "note": note} for n, name, note in counts],
        sections=sections,
        now=now,
    )
    return out


def catalog_command(
    family: Annotated[
        str | None, typer.Option(help="List the features of this family or topic, with their formulas.")
    ] = None,
    instrument: Annotated[
        str | None,
        typer.Option(help="exchange/market_type/symbol to draw; by default the most active one."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to; by default catalog.html in the data folder.")
    ] = None,
    page: Annotated[bool, typer.Option(help="Write the page with a line per feature, too.")] = True,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Print the feature catalogue, and write a page with the newest values of every feature."""
    console = Console()
    features = read_catalog()
    if family:
        chosen = [f for f in features if f.family == family] or topics(features).get(family, [])
        if not chosen:
            raise UserError(
                f"no family or topic {family}: choose from "
                f"{', '.join(sorted({*_families(features), *topics(features)}))}"
            )
        console.print(details(chosen))
        return
    console.print(summary(features))
    if page:
        path = write_catalog(features, out, parse_instrument(instrument) if instrument else None)
        console.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True, highlight=False)
        if open_:
            webbrowser.open(path.as_uri())
