"""The sections of the report, in the order of the page: each runs its queries and draws what they give."""

from __future__ import annotations

from dataclasses import dataclass

from clickhouse_driver import Client
from markupsafe import Markup

from python_udfs import db
from python_udfs.jobs.report import charts, queries, svg
from python_udfs.jobs.report.charts import Row, instrument_of, name_of
from python_udfs.jobs.report.html import Figure, Section, bad, empty, table
from python_udfs.jobs.report.queries import Instrument

DEFAULT_HOURS, MOST_BUCKETS = 0.75, 600
PRICE_BINS, VOLUME_BINS = 900, 120
MOST_INSTRUMENTS = 12


@dataclass(frozen=True, slots=True)
class Store:
    """What several sections need: the connection, and the instruments by number of trades."""

    client: Client
    instruments: list[Instrument]
    shown: Instrument

    def rows(self, sql: str) -> list[Row]:
        return db.rows(self.client, sql)

    def main_rows(self, rows: list[Row]) -> list[Row]:
        """Of one row per instrument: those of the most active instruments, most active first."""
        place = {instrument: i for i, instrument in enumerate(self.main)}
        return sorted((r for r in rows if instrument_of(r) in place), key=lambda r: place[instrument_of(r)])

    @property
    def main(self) -> list[Instrument]:
        return self.instruments[:MOST_INSTRUMENTS]

    @property
    def left_out(self) -> str:
        n = len(self.instruments) - MOST_INSTRUMENTS
        return f" The {MOST_INSTRUMENTS} most active instruments; {n} more are in the store." if n > 0 else ""


def store_section(store: Store, trades: list[Row], buckets: list[Row]) -> Section:
    """Instruments with their counts and freshness; what was not loaded."""
    by_instrument = {instrument_of(b): b for b in buckets}
    lines = []
    for t in trades:
        b = by_instrument.get(instrument_of(t))
        late = f"{svg.count(t['late_trades'])} ({svg.percent(t['late_trades'] / t['trades'], 2)})"
        behind = (
            svg.seconds((b["last_us"] - b["feature_us"]) / 1e6) if b and b["feature_us"] else "no features"
        )
        lines.append([
            name_of(instrument_of(t)),
            svg.clock(t["first_us"], svg.MINUTE),
            svg.clock(t["last_us"], svg.MINUTE),
            svg.count(t["trades"]),
            late if t["late_trades"] else "0",
            svg.count(b["buckets"]) if b else bad("0"),
            svg.number(b["bucket_trades"] / b["buckets"]) if b else svg.MISSING,
            svg.seconds(max(0, t["last_us"] - b["last_us"]) / 1e6) if b else svg.MISSING,
            svg.MISSING if not b else "none" if behind == "0 s" else bad(behind),
        ])  # fmt: skip
    counts = Figure(
        f"{len(trades)} instruments, most active first",
        table(
            "instrument | first trade | last trade | trades | late trades | buckets | trades each | still "
            "open | "
            "feature lag",
            "lllrrrrrr",
            lines,
        ),
        "A late trade was known only after its event time: the clock never uses it. Still open: from the "
        "last closed bucket to the last trade. Feature lag: from the last feature row to the last closed "
        "bucket.",
        sql=[queries.trade_counts(), queries.bucket_counts()],
    )
    rejected = store.rows(queries.quarantine())
    total = sum(r["lines"] for r in rejected)
    quarantine = Figure(
        f"{svg.count(total)} lines in quarantine: read, not loaded, with the reason"
        if rejected
        else "No line is in quarantine",
        table(
            "kind | source | reason | lines | first example",
            "lllrl",
            [
                [
                    r["kind"],
                    r["data_source"],
                    r["reason_code"],
                    svg.count(r["lines"]),
                    f"{r['example_file']}:{r['example_line']} {r['example_reason']}",
                ]
                for r in rejected
            ],
        )
        if rejected
        else empty("Every line that was read is in the store."),
        sql=[queries.quarantine()],
    )
    return Section(
        "store", "Store", "What was loaded, how far it goes, and what was left out.", [counts, quarantine]
    )


def clock_section(store: Store, hours: float) -> Section:
    """The buckets of one stretch over its price."""
    instrument = store.shown
    name = name_of(instrument)
    sql = [queries.stretch(instrument, hours * 3600, MOST_BUCKETS)]
    buckets = store.rows(sql[0])
    start, end = buckets[0]["start_us"], max(b["end_us"] for b in buckets)
    span = max(end - start, 1)
    widths = (max(span // PRICE_BINS, 1), _round_width(span))
    sql += [
        queries.mids(instrument, start, end, widths[0]),
        queries.traded(instrument, (buckets[0]["bucket_id"], buckets[-1]["bucket_id"]), start, widths[1]),
    ]
    prices, volumes = store.rows(sql[1]), store.rows(sql[2])
    is_mid = bool(prices)
    units = next(
        iter(store.rows(queries.units(instrument))), {"quantity_unit": "units", "price_unit": "quote units"}
    )
    cut = {
        css: sum(charts.trigger_class(b["cut_trigger"]) == css for b in buckets)
        for css in ("own", "time", "anchor")
    }
    own = ", ".join(sorted({b["cut_trigger"] for b in buckets} - {"time", "anchor"})) or "own"
    legend = [
        (css, f"{label} cut ({cut[css]})")
        for css, label in (("own", own), ("time", "time"), ("anchor", "anchor"))
    ]
    length = svg.seconds(span / 1e6)
    middle = sorted((b["end_us"] - b["start_us"]) / 1e6 for b in buckets)[len(buckets) // 2]
    figure = Figure(
        f"{name}: {len(buckets)} buckets in {length}, half of them shorter than {svg.seconds(middle)}",
        charts.timeline(
            buckets,
            prices or volumes,
            volumes,
            widths=(widths[0] if is_mid else widths[1], widths[1]),
            units=(units["quantity_unit"], units["price_unit"]),
            alt=f"{'Mid' if is_mid else 'Trade'} price, volume, flow imbalance and OFI of {name} from "
            f"{svg.clock(start, svg.MINUTE)} to {svg.clock(end, svg.MINUTE)} UTC, with {len(buckets)} "
            "buckets "
            f"as bands: {cut['own']} ended by their {own} cut, {cut['time']} by time, {cut['anchor']} by "
            "the anchor.",
        ),
        f"Each band is one bucket: narrow where much trades, wide where little does. The line is the "
        f"{'mid' if is_mid else 'last trade price (no book was loaded)'}. Point at a band for its numbers.",
        legend,
        sql,
    )
    lead = (
        "The logical clock: trades are cut into buckets of about equal volume; a time limit and the anchor "
        "(hour or day) end them early. Every feature is a row per bucket."
    )
    return Section("clock", "Buckets over price", lead, [figure])


def _round_width(span_us: int) -> int:
    """A round length of time of which at most VOLUME_BINS fit into the span, µs."""
    widths = (0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    return int(
        next((w * 1e6 for w in widths if span_us / (w * 1e6) <= VOLUME_BINS), -(-span_us // VOLUME_BINS))
    )


def durations_section(store: Store) -> Section:
    """How long buckets are and what cuts them."""
    sql = [queries.durations(), queries.triggers()]
    durations = store.rows(sql[0])
    cuts = store.main_rows(store.rows(sql[1]))
    total = sum(c["buckets"] for c in cuts)
    own = sum(c["own_cuts"] for c in cuts) / total
    figure = Figure(
        f"{svg.percent(own, 0)} of buckets fill up before the time limit or the anchor ends them",
        charts.clocks(
            cuts,
            durations,
            "Histograms of bucket durations and shares of cut triggers: "
            + "; ".join(
                f"{name_of(instrument_of(c))} median {svg.seconds(c['duration_quantiles'][1])}, "
                f"{svg.percent(c['own_cuts'] / c['buckets'], 0)} own cut"
                for c in cuts
            ),
        ),
        "Many time cuts mean that q_bucket is too large for what trades; many very short buckets, too small. "
        f"The tallest bar of each histogram has the full height.{store.left_out}",
        [("own", "the mode's own cut"), ("time", "time limit"), ("anchor", "anchor (hour or day)")],
        sql,
    )
    lead = "A good clock gives buckets of about the target duration, mostly cut by volume."
    return Section("durations", "Durations and cuts", lead, [figure])


FEATURES_LEAD = "Version 1 of the feature vector, as the scorer reads it."
GRAIN = ("exchange", "market_type", "symbol", "bucket_id")


def features_section(store: Store) -> Section:
    """Every numeric column of the feature vector as a small histogram."""
    found = store.rows(queries.columns("feature_vector_v1"))
    numeric = [
        c["name"]
        for c in found
        if c["name"] not in GRAIN and not any(t in c["type"] for t in ("Date", "String"))
    ]
    sql = queries.distributions(store.shown, numeric)
    by_name = {r["feature"]: r for r in store.rows(sql)}
    if not by_name:
        behind = Figure("Its buckets have no feature row yet", empty("Run `make build`."), sql=[sql])
        return Section("features", "Features", FEATURES_LEAD, [behind])
    comments = {c["name"]: c["comment"] for c in found}
    cards = Markup("").join(_card(by_name[name], comments[name]) for name in numeric)
    nulls = sum(1 for r in by_name.values() if r["nulls"])
    n = next(iter(by_name.values()))["buckets"]
    figure = Figure(
        f"{name_of(store.shown)}: {len(numeric)} features, {svg.count(n)} buckets; {nulls} are NULL at times",
        Markup('<div class="cards">{}</div>').format(cards),
        "From the 1st to the 99th percentile; the upright line is the median. NULL means unknown (too little "
        "history, no book), never zero."
        + (f" The newest {svg.count(queries.FEATURE_ROWS)} buckets." if n == queries.FEATURE_ROWS else ""),
        sql=[sql],
    )
    return Section(
        "features", "Features", "Version 1 of the feature vector, as the scorer reads it.", [figure]
    )


def _card(row: Row, comment: str) -> Markup:
    """One feature: its name, NULL share, histogram and percentiles."""
    share = row["nulls"] / row["buckets"]
    flags = [
        Markup("<span{}>{} NULL</span>").format(
            Markup(' class="bad"') if share > 0.2 else "", svg.percent(share) if share else "0 %"
        )
    ]
    if row["not_finite"]:
        flags.append(Markup('<span class="bad">{} not finite</span>').format(svg.count(row["not_finite"])))
    numbers = row["percentiles"] if row["values_seen"] else [None] * 3
    quantiles = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(p, svg.number(v))
        for p, v in zip(("p1", "p50", "p99"), numbers, strict=True)
    )
    return Markup('<div class="card"{}><h4>{}{}</h4>{}<dl>{}</dl></div>').format(
        Markup(' title="{}"').format(comment) if comment else "",
        row["feature"],
        Markup("").join(flags),
        charts.sparkline_histogram(row),
        quantiles,
    )


def labels_section(store: Store) -> Section:
    """How the label classes are balanced, and how far ahead each horizon looks."""
    names = [c["name"] for c in store.rows(queries.columns("training_set"))]
    horizons = [n.removeprefix("label_cls_") for n in names if n.startswith("label_cls_")]
    sql = queries.labels(horizons)
    rows = store.rows(sql)
    instruments = [i for i in store.main if any(instrument_of(r) == i for r in rows)]
    known = sum(r["down"] + r["flat"] + r["up"] for r in rows)
    flat = sum(r["flat"] for r in rows) / known if known else None
    figure = Figure(
        f"{svg.percent(flat, 0)} of all labels are flat" if known else "No label is known yet",
        charts.label_balance(
            rows,
            instruments,
            horizons,
            "Shares of down, flat and up labels per instrument and horizon: "
            + "; ".join(
                f"{name_of(instrument_of(r))} {charts.horizon_name(r['horizon'])}: "
                f"{r['down']}, {r['flat']}, {r['up']}"
                for r in rows
                if instrument_of(r) in instruments
            ),
        ),
        "A move counts as up or down when it is beyond a threshold scaled by past volatility: shares "
        "should be "
        f"alike over instruments and horizons, and up and down equal over time.{store.left_out}",
        [("down", "down"), ("flat", "flat"), ("up", "up")],
        [sql],
    )
    lead = "What came after each bucket: the only columns that look ahead. A label is NULL until it is known."
    return Section("labels", "Labels", lead, [figure])


def latency_section(store: Store) -> Section:
    """How long a score takes and how old the rows were that were scored."""
    lead = "From the request to the probabilities: read the feature rows, prepare the inputs, run the model."
    sql = [queries.latency_bins(), queries.latencies(), queries.staleness()]
    bins, models, ages = (store.rows(q) for q in sql)
    if not bins:
        return Section(
            "latency",
            "Score latency",
            lead,
            [Figure("No score was written yet", empty("Run `make score`, then `make report`."), sql=sql[:1])],
        )
    p50, p99 = bins[0]["quantiles"]
    histogram = Figure(
        f"Half of {svg.count(sum(b['requests'] for b in bins))} requests take under "
        f"{svg.seconds(p50 / 1e6)}, "
        f"99 % under {svg.seconds(p99 / 1e6)}",
        charts.latency(
            bins,
            p50,
            p99,
            f"Histogram of score latency on a log axis: median {svg.seconds(p50 / 1e6)}, "
            f"99th percentile {svg.seconds(p99 / 1e6)}.",
        ),
        "One request scores any number of instruments."
        + (" All models together." if len(models) > 1 else ""),
        sql=sql[:1],
    )
    parts = ("read", "prepare", "run", "total")
    where = Figure(
        "Where the time goes, p50 · p99",
        table(
            f"model | version | {' | '.join(parts)} | requests | scores | most at once",
            "llrrrrrrr",
            [
                [
                    m["model_name"],
                    m["model_version"],
                    *(" · ".join(svg.seconds(v / 1e6) for v in m[part]) for part in parts),
                    *(svg.count(m[n]) for n in ("requests", "scores", "most_scores")),
                ]
                for m in models
            ],
        ),
        sql=sql[1:2],
    )
    stale = sum(a["stale_scores"] for a in ages) / sum(a["scores"] for a in ages)
    staleness = Figure(
        f"{svg.percent(stale)} of scores came from a row that was too old, and say so",
        table(
            "instrument | scores | stale | age of the row, p50 | p99 | most inputs NULL | last score, UTC "
            "| P(up) − P(down)",
            "lrrrrrlr",
            [
                [
                    name_of(instrument_of(a)),
                    svg.count(a["scores"]),
                    bad(svg.percent(a["stale_scores"] / a["scores"])) if a["stale_scores"] else "0 %",
                    *(svg.seconds(v / 1e3) for v in a["age_ms_quantiles"]),
                    svg.count(a["most_missing"]),
                    svg.clock(a["last_us"], svg.MINUTE),
                    svg.number(a["last_score"]),
                ]
                for a in store.main_rows(ages)
            ],
        ),
        "Age: from the end of the bucket to the score." + store.left_out,
        sql=sql[2:],
    )
    return Section("latency", "Score latency", lead, [histogram, where, staleness])
