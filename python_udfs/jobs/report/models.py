"""The walk-forward section: what trained models were worth out of sample, from the files `train` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from pydantic import BaseModel, ValidationError

from python_udfs.jobs.report import charts, svg
from python_udfs.jobs.report.html import Figure, Section, empty, table
from python_udfs.scorer.card import CARD_FILE, EVALUATION_FILE, Card, Metrics

CLASSES = (("-1", "down"), ("0", "flat"), ("1", "up"))
MOST_MODELS = 4
TENTHS = 10


class Rows(BaseModel):
    """Of each out-of-sample row: P(up) - P(down), and the return that followed as a fraction."""

    score: list[float]
    label_return: list[float]


class Evaluation(BaseModel):
    """What the report reads of evaluation.json."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model as its folder describes it."""

    card: Card
    rows: Rows


def read_models(folder: Path) -> tuple[list[Model], list[str]]:
    """The newest models under `folder`, newest first, and a line for each that cannot be read."""
    models, broken = [], []
    for file in sorted(folder.glob(f"*/{CARD_FILE}")):
        try:
            card = Card.model_validate_json(file.read_bytes())
            evaluation = Evaluation.model_validate_json(file.with_name(EVALUATION_FILE).read_bytes())
        except ValidationError as e:
            problem = e.errors()[0]
            broken.append(f"{file.parent} [{'.'.join(map(str, problem['loc']))}]: {problem['msg']}")
        except FileNotFoundError as e:
            broken.append(f"{e.filename} is missing")
        else:
            models.append(Model(card, evaluation.rows))
    return sorted(models, key=lambda m: m.card.created_at, reverse=True)[:MOST_MODELS], broken


def models_section(folder: Path) -> Section:
    """Models against the base rate, by fold, by score and by class. Without a model: what to run."""
    lead = (
        "Each fold was predicted by a model that had seen only labels known before the fold began: "
        "everything "
        "here is out of sample."
    )
    models, broken = read_models(folder)
    figures = [Figure("A model cannot be read", empty(f"{line}. Run `make train`.")) for line in broken]
    if not models and not broken:
        figures.append(Figure("No model was trained yet", empty("Run `make train`, then `make report`.")))
    if models:
        cards = [m.card for m in models]
        figures += [_comparison(cards), _ic(cards), _gain(cards), _tenths(models), *map(_calibration, cards)]
    return Section("models", "Walk-forward", lead, figures)


def _comparison(cards: Sequence[Card]) -> Figure:
    best = min(cards, key=lambda card: card.pooled.log_loss / card.pooled.prior_log_loss)
    gain = _share_gained(best.pooled)
    verdict = f"{svg.percent(abs(gain), 2)} {'below' if gain > 0 else 'above'}"
    return Figure(
        f"The best model, {best.name}, has a log loss {verdict} the base rate",
        table(
            "model | label | rows | log loss | base rate | gain | Brier | accuracy | balanced | IC | AUC "
            "up | down",
            "llrrrrrrrrrr",
            [
                [
                    f"{card.name} {card.version}",
                    f"{card.label}, {card.horizon}",
                    svg.count(card.pooled.rows),
                    f"{card.pooled.log_loss:.4f}",
                    f"{card.pooled.prior_log_loss:.4f}",
                    svg.percent(_share_gained(card.pooled), 2),
                    f"{card.pooled.brier:.4f}",
                    svg.percent(card.pooled.accuracy),
                    svg.percent(card.pooled.balanced_accuracy),
                    svg.number(card.pooled.ic),
                    svg.number(card.pooled.auc.get("1")),
                    svg.number(card.pooled.auc.get("-1")),
                ]
                for card in cards
            ],
        ),
        "Base rate: always saying the class shares of the training rows; without a gain over it nothing was "
        f"learned. {best.name} was trained on {len(best.features)} features of {len(best.instruments)} "
        "instruments, "
        f"{svg.count(best.training_rows)} rows from {best.training_first_as_of:%Y-%m-%d %H:%M} to "
        f"{best.training_last_as_of:%Y-%m-%d %H:%M} UTC, at revision "
        f"{(best.git_revision or 'unknown')[:10]}.",
    )


def _share_gained(m: Metrics) -> float:
    return 1 - m.log_loss / m.prior_log_loss


def _ic(cards: Sequence[Card]) -> Figure:
    values = [([f.metrics.ic for f in card.folds], card.pooled.ic) for card in cards]
    return Figure(
        f"Folds with a positive IC: {_count_positive(cards, [of_fold for of_fold, _ in values])}",
        _fold_charts(cards, values, "rank IC"),
        "Spearman rank correlation of P(up) − P(down) with the return that followed. Dashed: all folds "
        "together.",
    )


def _gain(cards: Sequence[Card]) -> Figure:
    def gain(m: Metrics) -> float | None:
        return m.prior_log_loss - m.log_loss

    values = [([gain(f.metrics) for f in card.folds], gain(card.pooled)) for card in cards]
    return Figure(
        f"Folds that beat the base rate: {_count_positive(cards, [of_fold for of_fold, _ in values])}",
        _fold_charts(cards, values, "base rate − log loss, nats"),
        "Log loss of the base rate less that of the model. Above zero is better than knowing nothing.",
    )


def _count_positive(cards: Sequence[Card], values: Sequence[Sequence[float | None]]) -> str:
    counts = zip(cards, values, strict=True)
    return ", ".join(f"{card.name} {sum((v or 0) > 0 for v in of)} of {len(of)}" for card, of in counts)


def _fold_charts(
    cards: Sequence[Card], values: Sequence[tuple[Sequence[float | None], float | None]], unit: str
) -> Markup:
    """One chart a model, all on one scale, of a value for each fold and one for all folds."""
    limits = _limits([v for of_fold, pooled in values for v in (*of_fold, pooled) if v is not None])
    drawings = []
    for card, (of_fold, pooled) in zip(cards, values, strict=True):
        one_day = card.folds[0].test_first_as_of.date() == card.folds[-1].test_first_as_of.date()
        bars = []
        for f, value in zip(card.folds, of_fold, strict=True):
            title = (
                f"fold {f.fold}: {svg.number(value)}\n{f.test_first_as_of:%Y-%m-%d %H:%M} to "
                f"{f.test_last_as_of:%Y-%m-%d %H:%M} UTC, {svg.count(f.test_rows)} rows\n"
                f"trained on {svg.count(f.train_rows)} rows, {svg.count(f.purged_rows)} purged"
            )
            bars.append((f.test_first_as_of.strftime("%H:%M" if one_day else "%m-%d %H:%M"), value, title))
        alt = f"{unit} of {card.name} by fold: {', '.join(svg.number(v) for v in of_fold)}"
        drawn = charts.value_bars(bars, pooled, limits, (unit, "start of the fold's test rows, UTC"), alt)
        drawings.append((f"{card.name}: {svg.number(pooled)} over all folds", drawn))
    return _side_by_side(drawings)


def _tenths(models: Sequence[Model]) -> Figure:
    """What followed low and high scores: the mean return of each tenth of the out-of-sample rows by score."""
    means = []
    for m in models:
        score, returns = np.array(m.rows.score), np.array(m.rows.label_return) * 1e4
        parts = np.array_split(np.argsort(score, kind="stable"), min(TENTHS, len(score)))
        means.append([(float(returns[p].mean()), float(score[p].mean()), len(p)) for p in parts])
    limits = _limits([mean for of_model in means for mean, _, _ in of_model])
    drawings = []
    for m, of_model in zip(models, means, strict=True):
        unit = "mean return, bps" + ("" if m.card.label.endswith("s") else " per second")
        bars = [
            (
                str(i),
                mean,
                f"tenth {i}: mean score {svg.number(score)}, {svg.number(mean)} bps, {svg.count(n)} rows",
            )
            for i, (mean, score, n) in enumerate(of_model, 1)
        ]
        listed = ", ".join(svg.number(mean) for mean, _, _ in of_model)
        alt = f"{unit} of {m.card.name} by tenth of the score: {listed}"
        caption = "tenth of the rows by P(up) − P(down), lowest to highest"
        drawings.append((f"{m.card.name}", charts.value_bars(bars, None, limits, (unit, caption), alt)))
    spread = ", ".join(
        f"{m.card.name} {svg.number(of_model[-1][0] - of_model[0][0])} bps"
        for m, of_model in zip(models, means, strict=True)
    )
    return Figure(
        f"Return that followed the highest tenth of scores less the lowest: {spread}",
        _side_by_side(drawings),
        "Before fees and spread. A useful score rises from left to right.",
    )


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A range with zero and all values in it; no room below zero when nothing is there."""
    low, high = svg.padded([0.0, *values])
    return (low if min(values, default=0) < 0 else 0.0), (high if max(values, default=1) > 0 else 0.0)


def _calibration(card: Card) -> Figure:
    drawings, worst = [], 0.0
    for key, name in CLASSES:
        bins = [(b.predicted, b.observed, b.n) for b in card.pooled.calibration.get(key, [])]
        if bins:
            worst = max(worst, *(abs(p - o) for p, o, _ in bins))
            alt = f"Calibration of {card.name} for {name}: " + ", ".join(
                f"said {svg.percent(p)} came {svg.percent(o)}" for p, o, _ in bins
            )
            drawings.append((name, charts.reliability(bins, name, alt)))
    return Figure(
        f"{card.name}: predicted and observed shares differ by at most {worst * 100:.1f} percentage points",
        _side_by_side(drawings, "pair three"),
        "Equally full bins of predicted probability. On the dashed line a model means what it says; the "
        "whiskers "
        "are two standard errors.",
    )


def _side_by_side(drawings: Sequence[tuple[str, Markup]], css: str = "pair") -> Markup:
    inner = Markup("").join(
        Markup("<div><h4>{}</h4>{}</div>").format(name, drawn) for name, drawn in drawings
    )
    return Markup('<div class="{}">{}</div>').format(css, inner)
