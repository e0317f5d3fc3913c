"""training.html: one comparison as a self-contained page, in the look of the store's report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from markupsafe import Markup

from python_udfs.jobs.report import charts, svg, write_page
from python_udfs.jobs.report.html import Figure, Section, empty, table
from python_udfs.jobs.report.svg import Scale, line, text
from python_udfs.training.decay import Point, frontier_chart
from python_udfs.training.ladder import (
    DISCOVERY_RATE,
    EXPLAINED_SHARE,
    FEE_BPS,
    LATENCY_BUDGET_MS,
    Ladder,
    Line,
)
from python_udfs.training.significance import Snooping

HEAD: Final = (
    "model or rule",
    "rank IC",
    "95 %",
    "of folds",
    "IC",
    "IC_IR",
    "hit",
    "AUC",
    "Brier",
    "ECE",
    "loss / prior",
    "turnover/day",
    "Sharpe",
    "drawdown",
    "capacity",
    "parameters",
    "p50 ms",
    "gate",
)
LIKELY: Final = 0.05


def _signed(value: float | None) -> str:
    return svg.MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def _plain(value: float | None) -> str:
    return svg.MISSING if value is None else f"{value:.3f}".replace("-", "−")


def _interval(low: float | None, high: float | None) -> str:
    return svg.MISSING if low is None or high is None else f"{_signed(low)} {_signed(high)}"


def cells(of: Line) -> list[str]:
    """A line under HEAD."""
    m, earned = of.metrics, of.money
    return [
        of.name,
        _signed(of.ic),
        _interval(of.ic_low, of.ic_high),
        _signed(of.fold_ic),
        _signed(of.ic_pearson),
        _plain(of.ic_ir),
        svg.percent(of.hit_rate),
        _plain(of.auc),
        _plain(m.brier if m else None),
        _plain(m.ece if m else None),
        f"{m.log_loss:.3f} / {m.prior_log_loss:.3f}" if m else svg.MISSING,
        svg.number(earned.turnover_per_day if earned else None),
        svg.number(earned.sharpe if earned else None),
        svg.percent(earned.max_drawdown if earned else None, 2),
        svg.number(of.capacity),
        svg.number(of.parameters),
        svg.number(of.latency_ms[0] if of.latency_ms else None),
        of.verdict or svg.MISSING,
    ]


def title(ladder: Ladder) -> str:
    """What was compared on what."""
    data = ladder.market.data
    tested = sum(len(fold.test) for fold in ladder.folds)
    kind = "SHUFFLED LABELS, " if ladder.shuffled else ""
    scheme = "expanding" if ladder.options.rolling_share is None else "rolling"
    return (
        f"{kind}traditions on one footing: {data.label.column} ({data.label.horizon}), {tested:,} test rows of "
        f"{len(data.instruments)} instruments in {len(ladder.folds)} purged {scheme} folds"
    )


def verdicts(ladder: Ladder) -> list[str]:
    """What could be luck, a sentence each."""
    t = ladder.tests
    found = t.discovered
    return [
        f"reality check of {t.tried} tried forecasts against zero IC: {_p(t.forecasts)}; the best is {t.forecasts_best}: "
        + _luck(t.forecasts.reality_check),
        f"reality check of net returns against zero: {_p(t.earnings)}: {_luck(t.earnings.reality_check)}; against buy "
        f"and hold: {_p(t.earnings_hold)}: {_luck(t.earnings_hold.reality_check)}",
        f"deflated Sharpe of the best, {t.earnings_best or svg.MISSING}: {_plain(t.deflated_sharpe)} (the probability "
        "that its true Sharpe ratio is above the best of as many without any)",
        f"Benjamini-Hochberg at {DISCOVERY_RATE:.0%}: {len(found)} of {len(t.feature_names)} features predict the return"
        + (f": {', '.join(found)}" if found else ""),
    ]


def _p(s: Snooping) -> str:
    return f"p {_chance(s.reality_check, '= ')} (SPA {_chance(s.spa)})"


def _chance(p: float | None, equals: str = "") -> str:
    return svg.MISSING if p is None else "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"


def _luck(p: float | None) -> str:
    if p is None:
        return "too little time to tell"
    return "more than luck" if p < LIKELY else "no better than luck"


def write_training_report(ladder: Ladder, out: Path) -> None:
    """Writes the page, all at once or not at all."""
    now = datetime.now(UTC)
    models = [x for x in ladder.lines if x.metrics]
    write_page(
        out,
        title="MarketPrism training" + (", shuffled labels" if ladder.shuffled else ""),
        subtitle=title(ladder),
        tiles=_tiles(ladder),
        sections=[
            Section(
                "comparison",
                "Comparison",
                "Everything was fitted, chosen and scaled on rows whose label was known before a fold began, and "
                "tested on the fold.",
                [_table(ladder), _tests(ladder), _features(ladder)],
            ),
            Section(
                "folds",
                "Folds",
                "Is it there in every period?",
                [_folds(models), _regimes(ladder), _horizons(ladder)],
            ),
            Section(
                "calibration", "Calibration", "Does a probability mean what it says?", [_calibration(models)]
            ),
            Section(
                "latency",
                "Latency and decay",
                "What is left when the signal arrives?",
                [_frontier(ladder), _decay(models), _smaller(models)],
            ),
            Section("explanations", "Explanations", "What the models look at.", [_explanations(ladder)]),
        ],
        now=now,
    )


def _tiles(ladder: Ladder) -> list[dict[str, str]]:
    t, best = ladder.tests, ladder.best
    adopted = [x.name for x in ladder.lines if x.verdict == "adopt"]
    tiles = [
        (_signed(best.ic if best else None), "best rank IC", best.name if best else ""),
        (
            _chance(t.forecasts.reality_check),
            "reality check p",
            f"{t.tried} tried: {_luck(t.forecasts.reality_check)}",
        ),
        (_chance(t.earnings.reality_check), "the same of net returns", _luck(t.earnings.reality_check)),
        (_plain(t.deflated_sharpe), "deflated Sharpe", t.earnings_best),
        (
            f"{len(t.discovered)} of {len(t.feature_names)}",
            "features discovered",
            f"at {DISCOVERY_RATE:.0%} false",
        ),
        (str(len(adopted)), "models adopted", ", ".join(adopted) or "the one in use stays"),
    ]
    return [{"value": value, "name": name, "note": note} for value, name, note in tiles]


def _table(ladder: Ladder) -> Figure:
    best = ladder.best
    return Figure(
        f"{best.name} forecasts best: rank IC {_signed(best.ic)}" if best else "Nothing forecasts",
        table(" | ".join(HEAD), "l" + "r" * (len(HEAD) - 1), [cells(x) for x in ladder.lines]),
        "Of folds: the mean of the folds' rank ICs; above the first where the level of a score drifts between folds. "
        "Each rule trades its strongest fifth until the label's end; Sharpe, yearly, and drawdown after "
        f"{FEE_BPS:g} bps of fees and half the spread each way. Capacity: one trade whose square-root impact takes "
        "the whole edge, in quote currency. Gate: gain in IC against latency (p99, budget "
        f"{LATENCY_BUDGET_MS:g} ms), parameters and explanations. "
        "explanations. " + " ".join(f"{x.name}: {x.note}." for x in ladder.lines if x.note),
    )


def _tests(ladder: Ladder) -> Figure:
    t = ladder.tests
    rows = [
        [
            name,
            _chance(s.reality_check),
            _chance(s.spa),
            _chance(s.spa_lower),
            _chance(s.spa_upper),
            str(s.tested),
            str(s.length),
        ]
        for name, s in (
            (f"IC of all {t.tried} tried, against zero", t.forecasts),
            ("net returns of the table, against zero", t.earnings),
            ("net returns of the table, against buy and hold", t.earnings_hold),
        )
    ]
    refused = [[x.name, x.verdict, "; ".join(x.reasons)] for x in ladder.lines if x.verdict]
    body = table("what | reality check p | SPA p | lower | upper | tested | block, periods", "lrrrrrr", rows)
    if refused:
        body += Markup("<br>") + table("model | gate | why not", "lll", refused)
    return Figure(
        f"The best of everything that was tried is {_luck(t.forecasts.reality_check)}",
        body,
        " ".join(f"{x[0].upper()}{x[1:]}." for x in verdicts(ladder)),
    )


def _features(ladder: Ladder) -> Figure:
    t = ladder.tests
    f = t.features
    order = np.argsort(np.where(np.isnan(f.p), 2, f.p), kind="stable")
    rows = [
        [
            t.feature_names[i],
            *(svg.MISSING if np.isnan(x) else _signed(float(x)) for x in (f.ic[i],)),
            *(svg.MISSING if np.isnan(x) else f"{x:.4f}" for x in (f.p[i], f.adjusted[i])),
            str(f.blocks[i]),
            "yes" if f.discovered[i] else "no",
        ]
        for i in order
    ]
    return Figure(
        f"{len(t.discovered)} of {len(rows)} features predict the return at {DISCOVERY_RATE:.0%} false discoveries",
        table("feature | mean rank IC | p | adjusted p | blocks | discovered", "lrrrrl", rows),
        "Rank IC of blocks of ten horizons, t-test against zero, Benjamini-Hochberg over all features.",
    )


def _folds(models: Sequence[Line]) -> Figure:
    values = [v for m in models for of_fold in m.fold_ics for v in of_fold if v is not None]
    limits = svg.padded([0.0, *values])
    positive = ", ".join(
        f"{m.name} {sum((ic or 0) > 0 for ic, _, _ in m.fold_ics)} of {len(m.fold_ics)}" for m in models
    )
    return Figure(
        f"Folds with a positive IC: {positive}",
        _side_by_side([(f"{m.name}: {_signed(m.ic)}", _fold_chart(m, limits)) for m in models]),
        "Rank IC of each fold with its 95 % block-bootstrap interval. Dashed: all folds together.",
    )


def _fold_chart(of: Line, limits: tuple[float, float]) -> Markup:
    width, top, bottom, left = 520, 14, 176, 58
    y = Scale(*limits, bottom, top)
    marks = svg.ticks(*limits, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    parts = []
    for mark in marks:
        parts += [
            line(left, y(mark), width, y(mark), "axis" if mark == 0 else "grid"),
            text(left - 7, y(mark) + 4, svg.tick_label(mark, step), "t", "end"),
        ]
    slot = (width - left) / len(of.fold_ics)
    for i, (ic, low, high) in enumerate(of.fold_ics):
        x = left + (i + 0.5) * slot
        parts.append(text(x, bottom + 17, f"fold {i + 1}", "t", "middle"))
        if ic is None:
            parts.append(text(x, y(0) - 5, "none", "t", "middle"))
            continue
        if low is not None and high is not None:
            parts.append(line(x, y(low), x, y(high), "whisker"))
        shown = f"fold {i + 1}: {_signed(ic)}, {_interval(low, high)}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y(ic):.1f}" r="5" class="dot {"up" if ic > 0 else "down"}">'
            f"<title>{shown}</title></circle>"
        )
    if of.ic is not None:
        parts.append(line(left, y(of.ic), width, y(of.ic), "reference"))
    alt = f"rank IC of {of.name} by fold: {', '.join(_signed(ic) for ic, _, _ in of.fold_ics)}"
    return svg.drawing(width, bottom + 26, alt, parts, "chart small")


def _regimes(ladder: Ladder) -> Figure:
    names = list(dict.fromkeys(name for x in ladder.lines for name in x.regimes))
    rows = [[x.name, *(_signed(x.regimes.get(name, (0, None))[1]) for name in names)] for x in ladder.lines]
    counts = ladder.lines[0].regimes
    return Figure(
        "Rank IC by volatility regime",
        table(
            " | ".join(["model or rule", *(f"{n} ({svg.count(counts[n][0])} rows)" for n in names)]),
            "l" + "r" * len(names),
            rows,
        ),
        "The regime is the feature volatility_regime, as of the decision.",
    )


def _horizons(ladder: Ladder) -> Figure:
    names = list(dict.fromkeys(name for x in ladder.lines for name in x.horizons))
    own = ladder.market.data.label
    if not names:
        return Figure("Rank IC by horizon", empty("The returns of the other horizons were not read."))
    shown = [f"{n[:-1]} s" if n.endswith("s") else f"{n} buckets" for n in names]
    return Figure(
        "Rank IC of the same scores against the returns of every horizon",
        table(
            " | ".join(["model or rule", *shown]),
            "l" + "r" * len(names),
            [[x.name, *(_signed(x.horizons.get(n)) for n in names)] for x in ladder.lines],
        ),
        f"The models were trained for {own.horizon}.",
    )


def _calibration(models: Sequence[Line]) -> Figure:
    drawings = []
    for m in models:
        for key, name in (("-1", "down"), ("1", "up")):
            bins = (
                [(b.predicted, b.observed, b.n) for b in m.metrics.calibration.get(key, [])]
                if m.metrics
                else []
            )
            if bins:
                alt = f"Calibration of {m.name} for {name}: " + ", ".join(
                    f"said {svg.percent(p)} came {svg.percent(o)}" for p, o, _ in bins
                )
                drawings.append((f"{m.name}, {name}", charts.reliability(bins, name, alt)))
    listed = ", ".join(f"{m.name} {_plain(m.metrics.ece)}" for m in models if m.metrics)
    return Figure(
        f"Expected calibration error: {listed}",
        _side_by_side(drawings, "pair three"),
        "Equally full bins of predicted probability; on the dashed line a model means what it says; the whiskers are two "
        "standard errors.",
    )


def _frontier(ladder: Ladder) -> Figure:
    points = [
        Point(x.name, x.latency_ms[1] / 1e3, x.ic, x.half_life.half_life_s if x.half_life else None)
        for x in ladder.lines
        if x.latency_ms and x.ic is not None
    ]
    if not points:
        return Figure("Frontier", empty("No model was exported, so that none has a latency."))
    return Figure(
        "Accuracy against latency",
        frontier_chart(points),
        "Latency is one ORT run of batch 1 on one core, p99, measured right after training. The line joins the models "
        "that no other beats; the decay of the signal until it arrives is priced in.",
    )


def _smaller(models: Sequence[Line]) -> Figure:
    rows = [
        [
            m.name,
            name,
            svg.number(v.size / 1e3),
            f"{v.max_abs_diff:.1e}",
            _signed(v.ic),
            _signed(v.ic_loss),
        ]
        for m in models
        for name, v in m.smaller.items()
    ]
    if not rows:
        return Figure("Smaller files", empty("No network was exported."))
    return Figure(
        "What half floats and 8 bits cost",
        table("model | variant | kB | largest difference | rank IC | lost", "llrrrr", rows),
        "Of the last fold's networks on its test rows; difference in probability, to the same network in 32 bits.",
    )


def _decay(models: Sequence[Line]) -> Figure:
    delays = [svg.seconds(d.asked_s) for d in next((m.decay for m in models if m.decay), [])]
    rows = [
        [
            m.name,
            svg.seconds(m.half_life.half_life_s) if m.half_life else "not seen",
            *(_signed(d.ic) for d in m.decay),
        ]
        for m in models
        if m.decay
    ]
    if not rows:
        return Figure("Signal decay", empty("No score varies."))
    drawn = [(m.name, _decay_chart(m)) for m in models if any(d.ic is not None for d in m.decay)]
    return Figure(
        "Rank IC of scores that are acted upon late",
        _side_by_side(drawn)
        + table(" | ".join(["model", "half-life", *delays]), "l" + "r" * (len(delays) + 1), rows),
        "The newest score of at least so long ago against the row's return. The half-life is of an exponential decay "
        "through them, where it explains half of their variance.",
    )


def _decay_chart(of: Line) -> Markup:
    known = [(d.delay_s, d.ic) for d in of.decay if d.delay_s is not None and d.ic is not None]
    width, top, bottom, left = 520, 14, 176, 58
    x = Scale(0, max([1e-6, *(delay for delay, _ in known)]), left, width - 12)
    y = Scale(*svg.padded([0.0, *(ic for _, ic in known)]), bottom, top)
    marks = svg.ticks(y.low, y.high, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    parts = []
    for mark in marks:
        parts += [
            line(left, y(mark), width, y(mark), "axis" if mark == 0 else "grid"),
            text(left - 7, y(mark) + 4, svg.tick_label(mark, step), "t", "end"),
        ]
    if half := of.half_life:
        curve = np.linspace(0, x.high, 60).tolist()
        parts.append(svg.polyline([(x(d), y(half.ic(d))) for d in curve], "reference"))
    parts.append(svg.polyline([(x(delay), y(ic)) for delay, ic in known], "price"))
    parts += [text(x(delay), bottom + 17, svg.seconds(delay), "t", "middle") for delay, _ in known[::2]]
    parts.append(text((left + width) / 2, bottom + 36, "delay", "l", "middle"))
    alt = f"Rank IC of {of.name} by delay: " + ", ".join(f"{svg.seconds(d)} {_signed(ic)}" for d, ic in known)
    return svg.drawing(width, bottom + 44, alt, parts, "chart small")


def _explanations(ladder: Ladder) -> Figure:
    rows = [
        [
            x.name,
            svg.percent(x.coverage),
            ", ".join(f"{name} {svg.percent(share, 0)}" for name, share in x.inputs),
        ]
        for x in ladder.lines
        if x.inputs
    ]
    if not rows:
        return Figure("Explanations", empty("No model was exported, so that none is explained."))
    return Figure(
        f"How much of all attribution falls on the first {EXPLAINED_SHARE:.0%} of the inputs",
        table("model | coverage | largest inputs", "lrl", rows),
        "Exact for the linear model, TreeSHAP for trees, gradient times input for networks, on the last rows.",
    )


def _side_by_side(drawings: Sequence[tuple[str, Markup]], css: str = "pair") -> Markup:
    inner = Markup("").join(
        Markup("<div><h4>{}</h4>{}</div>").format(name, drawn) for name, drawn in drawings
    )
    return Markup('<div class="{}">{}</div>').format(css, inner)
