"""The ladder: every model and tradition on the same folds, rows, costs and tests, in one comparison.

For the tests see `significance`, for money `backtest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from python_udfs.scorer.card import Card, Column, Metrics, ModelType
from python_udfs.training import backtest as money
from python_udfs.training.backtest import Backtest, Holdings
from python_udfs.training.context import REGIMES, Context
from python_udfs.training.dataset import Dataset
from python_udfs.training.decay import DelayedIc, HalfLife, delayed_ics, fit_half_life
from python_udfs.training.explain import coverage
from python_udfs.training.gate import Candidate, decide
from python_udfs.training.metrics import (
    direction,
    evaluate_by,
    hit_rate,
    ic_with_intervals,
    pearson_ic,
    rank_ic,
    time_blocks,
)
from python_udfs.training.significance import (
    FeatureTests,
    Snooping,
    block_means,
    data_snooping,
    feature_tests,
)
from python_udfs.training.split import MIN_TRAIN_ROWS, Fold
from python_udfs.training.stacking import fit_stack
from python_udfs.training.traditions import Rule, Search, holding, random_search, single_features
from python_udfs.training.train import (
    Fitted,
    Market,
    Options,
    OutOfSample,
    block_seconds,
    classes_of,
    cut_folds,
    evaluate_folds,
    fit_models,
    latency_ms,
    save,
    strong,
    walk,
)

if TYPE_CHECKING:  # needs PyTorch
    from python_udfs.training.network_export import VariantReport

Floats = npt.NDArray[np.float64]

NAMES: Final = {
    ModelType.LOGISTIC: "linear: logistic",
    ModelType.LIGHTGBM: "trees: LightGBM",
    ModelType.DEEPLOB_TCN: "DeepLOB-TCN",
    ModelType.TEACHER: "teacher",
    ModelType.STUDENT: "student",
    ModelType.MIXTURE: "mixture of experts",
}
STACK: Final = "stack of the models"
EXPERT: Final = "human expert"
LATENCY_BUDGET_MS: Final = 50.0
FEE_BPS: Final = 4.0
# An explanation names a quarter of a model's inputs.
EXPLAINED_SHARE: Final = 0.25
DISCOVERY_RATE: Final = 0.1
_PERIOD_S: Final = 60.0
_EXPLAINED_ROWS: Final = 500


@dataclass(slots=True)
class Line:
    """A row of the comparison; None where it is not defined or not known."""

    name: str
    key: str  # of the model's folder; empty for a tradition
    rows: int  # test rows with a score
    metrics: Metrics | None  # of models only
    ic: float | None  # rank IC
    ic_pearson: float | None
    ic_low: float | None
    ic_high: float | None
    ic_ir: float | None
    hit_rate: float | None
    auc: float | None  # up against the rest
    money: Backtest | None
    capacity: float | None  # quote currency of one trade
    fold_ics: list[tuple[float | None, float | None, float | None]]  # of each fold: IC and its interval
    regimes: dict[str, tuple[int, float | None]]  # rows and IC
    horizons: dict[str, float | None]
    decay: list[DelayedIc] = field(default_factory=list)
    half_life: HalfLife | None = None
    parameters: int | None = None
    latency_ms: tuple[float, float] | None = None  # p50, p99 of one ORT run of batch 1
    # of a network: its smaller files
    smaller: Mapping[str, VariantReport] = field(default_factory=dict)
    coverage: float | None = None
    inputs: list[tuple[str, float]] = field(default_factory=list)  # the largest shares of attribution
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    note: str = ""

    @property
    def fold_ic(self) -> float | None:
        """Mean rank IC of the folds."""
        known = [ic for ic, _, _ in self.fold_ics if ic is not None]
        return float(np.mean(known)) if known else None

    @property
    def skill(self) -> float | None:
        """Share of the prior's log loss that the model saves."""
        return 1 - self.metrics.log_loss / self.metrics.prior_log_loss if self.metrics else None


@dataclass(frozen=True, slots=True)
class Tests:
    """What of all this could be luck."""

    forecasts: Snooping  # IC of everything that was tried, against zero
    forecasts_best: str
    tried: int
    earnings: Snooping  # net returns of the lines, against zero
    earnings_hold: Snooping  # the same, against buy and hold
    earnings_best: str
    deflated_sharpe: float | None  # of the line with the highest Sharpe ratio
    features: FeatureTests
    feature_names: list[str]

    @property
    def discovered(self) -> list[str]:
        return [
            name for name, found in zip(self.feature_names, self.features.discovered, strict=True) if found
        ]


@dataclass(frozen=True, slots=True)
class Ladder:
    """A whole comparison."""

    market: Market
    folds: list[Fold]
    options: Options
    shuffled: bool
    lines: list[Line]
    cards: list[Card]
    tests: Tests

    @property
    def best(self) -> Line | None:
        """The line with the highest IC."""
        known = [line for line in self.lines if line.ic is not None]
        return max(known, key=lambda line: line.ic or 0.0) if known else None


def stack(
    outs: Sequence[OutOfSample], data: Dataset, folds: list[Fold], classes: list[int], o: Options
) -> OutOfSample:
    """Combines the models by what they said out of sample: see `stacking`.

    For a fold it is fitted on the test rows of the folds before it whose label was known in time; where those are
    too few, the models' mean stands in, in the first fold always.
    """
    first, base = outs[0], [out.probabilities for out in outs]
    labels, known_at = data.classes[first.row], data.known_at[first.row]
    said, cut = np.mean(base, axis=0), np.mean([out.cut for out in outs], axis=0)
    for number, fold in enumerate(folds, 1):
        here = first.fold == number
        past = (first.fold < number) & (known_at + o.embargo_us <= data.as_of[fold.test[0]])
        if past.sum() < MIN_TRAIN_ROWS or len(np.unique(labels[past])) < len(classes):
            continue
        fitted = fit_stack([p[past] for p in base], labels[past], o.seed)
        said[here] = fitted.probabilities([p[here] for p in base])
        cut[here] = strong(direction(fitted.probabilities([p[past] for p in base]), classes))
    return OutOfSample(first.fold, first.row, said, first.prior, cut)


def climb(
    market: Market,
    kinds: Sequence[ModelType],
    o: Options,
    *,
    context: Context | None = None,
    folders: Mapping[ModelType, Path] | None = None,
    shuffled: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Ladder:
    """Walks every model over the same folds, compares them with the traditions, and exports those with a folder.

    Args:
        market: all labelled rows.
        kinds: the models, in the order of the table.
        o: folds, calibration, seed.
        context: prices and costs of the rows; None: unknown.
        folders: where models are written; one without a folder is not fitted on all rows, and so has no latency.
        shuffled: deal labels and returns anew first; nothing is exported, as with o.time_of_day.
        say: gets a line per step.

    Raises:
        UserError: too few rows, one class only, or an export that does not match the trained model.
    """
    context = context or Context.unknown(len(market.data.as_of))
    if shuffled:
        # the returns of the other horizons would still be the true ones
        market, context = market.shuffled(o.seed), replace(context, returns={})
    if shuffled or o.time_of_day:  # the scorer could not normalise: it has no table of hours
        folders = None
    data = market.data
    folds, classes = cut_folds(data, o), classes_of(data)
    newest: dict[ModelType, Fitted] = {}
    outs = walk(kinds, market, folds, classes, o=o, say=say, newest=newest)
    any_out = next(iter(outs.values()))
    judge = _Judge(data, context, any_out.row, any_out.fold, o.seed)

    say("traditions")
    random, singles = random_search(data, folds, seed=o.seed), single_features(data, folds)
    models = {kind: judge.model(NAMES[kind], kind.value, out) for kind, out in outs.items()}
    scores = {NAMES[kind]: direction(out.probabilities, classes) for kind, out in outs.items()}
    lines = [judge.rule(random.best[0]), judge.holding(), *map(judge.rule, singles.best), *models.values()]
    if len(outs) > 1:
        combined = stack(list(outs.values()), data, folds, classes, o)
        lines.append(judge.model(STACK, "", combined))
        scores[STACK] = direction(combined.probabilities, classes)
    lines.append(judge.rule(Rule(EXPERT, context.expert[judge.row], np.zeros(len(judge.row)), ())))
    lines[-1].note = context.expert_note

    cards = []
    if folders:
        say("fit on all rows")
        fitted = fit_models(kinds, market, np.arange(len(data.as_of)), o)
        last = folds[-1].test[-_EXPLAINED_ROWS:]
        for kind, line in models.items():
            _explain(line, fitted[kind].attributions(market, last), market.contract(kind))
            line.parameters = fitted[kind].parameters
            line.smaller = _smaller(newest[kind], market, folds[-1]) if kind.is_network else {}
            line.latency_ms = latency_ms(fitted[kind].onnx(), market.inputs(kind, last[-1:]))
            cards.append(
                save(
                    folders[kind],
                    fitted[kind],
                    market=market,
                    out=outs[kind],
                    steps=folds,
                    o=o,
                    metrics=judge.metrics[kind.value],
                    more=judge.evaluation(line, outs[kind]),
                    smaller=line.smaller,
                )
            )
    _adopt(lines, list(models.values()))
    say("tests")
    tests = judge.tests(lines, scores, [random, singles])
    return Ladder(market, folds, o, shuffled, lines, cards, tests)


class _Judge:
    """The test rows of all folds, and everything that is measured on them."""

    def __init__(
        self,
        data: Dataset,
        context: Context,
        row: npt.NDArray[np.int64],
        fold: npt.NDArray[np.int64],
        seed: int,
    ) -> None:
        self.data, self.context, self.row, self.fold, self.seed = data, context, row, fold, seed
        self.as_of, self.known_at = data.as_of[row], data.known_at[row]
        self.labels, self.returns, self.instrument = (
            data.classes[row],
            data.returns[row],
            data.instrument[row],
        )
        self.horizon_s = float(np.median(self.known_at - self.as_of)) / 1e6
        self.block_s = block_seconds(data)
        per_second = not data.label.suffix.endswith("s")
        self.moved = money.holding_return(self.returns, self.as_of, self.known_at, per_second=per_second)
        self.metrics: dict[str, tuple[Metrics, list[Metrics]]] = {}

    def model(self, name: str, key: str, out: OutOfSample) -> Line:
        score = direction(out.probabilities, classes_of(self.data))
        pooled, of_folds = evaluate_folds(self.data, out)
        self.metrics[key] = pooled, of_folds
        line = self._line(Rule(name, score, out.cut, ()), [(m.ic, m.ic_low, m.ic_high) for m in of_folds])
        line.key, line.metrics = key, pooled
        line.ic_low, line.ic_high, line.ic_ir = pooled.ic_low, pooled.ic_high, pooled.ic_ir
        return line

    def rule(self, rule: Rule) -> Line:
        line = self._line(rule, [self._ic(rule.score, self.fold == i) for i in np.unique(self.fold)])
        every = self._intervals(rule.score, np.isfinite(rule.score))
        line.ic_low, line.ic_high, line.ic_ir = (every.get(name) for name in ("ic_low", "ic_high", "ic_ir"))
        line.note = "; ".join(dict.fromkeys(rule.chosen))
        return line

    def holding(self) -> Line:
        """Long from the first price to the last."""
        rule = holding(len(self.row))
        held = money.hold_to_next_decision(
            rule.score, self.as_of, self.context.mid[self.row], self.instrument
        )
        return self._line(rule, [(None, None, None)] * len(np.unique(self.fold)), held)

    def _line(
        self,
        rule: Rule,
        fold_ics: list[tuple[float | None, float | None, float | None]],
        held: Holdings | None = None,
    ) -> Line:
        score, regimes = rule.score, self.context.regime[self.row]
        there = np.isfinite(score)
        up = self.labels[there] == 1
        earned = self._money(rule, held) if there.any() else None
        delays = self.horizon_s * np.array([0, 1 / 3, 2 / 3, 1, 2, 3, 5])
        varies = bool(there.any()) and np.ptp(score[there]) > 0
        decay = (
            delayed_ics(
                score, self.as_of, self.returns, self.instrument, delays.tolist(), max_late_s=self.horizon_s
            )
            if varies
            else []
        )
        return Line(
            name=rule.name,
            key="",
            rows=int(there.sum()),
            metrics=None,
            ic=rank_ic(score, self.returns),
            ic_pearson=pearson_ic(score, self.returns),
            ic_low=None,
            ic_high=None,
            ic_ir=None,
            hit_rate=hit_rate(score, self.returns),
            auc=float(roc_auc_score(up, score[there])) if varies and up.any() and not up.all() else None,
            money=earned,
            capacity=self._capacity(earned),
            fold_ics=fold_ics,
            regimes={
                name: (int((regimes == i).sum()), rank_ic(score[regimes == i], self.returns[regimes == i]))
                for i, name in REGIMES.items()
                if (regimes == i).any()
            },
            horizons={
                name: rank_ic(score, returns[self.row]) for name, returns in self.context.returns.items()
            },
            decay=decay,
            half_life=fit_half_life(
                np.array([np.nan if d.delay_s is None else d.delay_s for d in decay]),
                np.array([np.nan if d.ic is None else d.ic for d in decay]),
            ),
        )

    def _ic(
        self, score: Floats, chosen: npt.NDArray[np.bool_]
    ) -> tuple[float | None, float | None, float | None]:
        every = self._intervals(score, chosen & np.isfinite(score))
        return rank_ic(score[chosen], self.returns[chosen]), every.get("ic_low"), every.get("ic_high")

    def _intervals(self, score: Floats, chosen: npt.NDArray[np.bool_]) -> dict[str, float | int | None]:
        if chosen.sum() < 2:
            return {}
        return ic_with_intervals(
            score[chosen], self.returns[chosen], self.as_of[chosen], block_s=self.block_s, seed=self.seed
        )

    def _money(self, rule: Rule, held: Holdings | None) -> Backtest:
        position = money.target_position(np.where(np.abs(rule.score) > rule.cut, rule.score, 0.0))
        if held is None:
            held = money.hold_to_label_end(position, self.as_of, self.known_at, self.moved, self.instrument)
        return money.backtest(
            held,
            start=int(self.as_of[0]),
            end=int(max(self.known_at.max(), self.as_of.max())),
            instruments=len(self.data.instruments),
            fee_bps=FEE_BPS,
            slippage_bps=self.context.slippage_bps[self.row],
            period_s=_PERIOD_S,
        )

    def _capacity(self, earned: Backtest | None) -> float | None:
        rate = self.context.notional_per_second[self.row]
        rate = rate[np.isfinite(rate)]
        if earned is None or not len(rate):
            return None
        volatility_bps = float(np.nanstd(self.moved)) * 1e4
        return money.capacity(earned.edge_bps, volatility_bps, float(np.median(rate)) * self.horizon_s)

    def evaluation(self, line: Line, out: OutOfSample) -> dict[str, Any]:
        """What evaluation.json holds of a model beside its folds."""
        of_regime = evaluate_by(
            self.context.regime[self.row],
            probabilities=out.probabilities,
            prior=out.prior,
            labels=self.labels,
            returns=self.returns,
            classes=classes_of(self.data),
        )
        return {
            "regimes": {REGIMES[i]: m.model_dump(mode="json") for i, m in of_regime.items()},
            "horizons": line.horizons,
            "decay": [asdict(d) for d in line.decay],
            "half_life_s": line.half_life.half_life_s if line.half_life else None,
            "parameters": line.parameters,
            "ort_latency_ms": line.latency_ms,
            "explanation_coverage": line.coverage,
            "backtest": {k: v for k, v in asdict(line.money).items() if k != "returns"}
            if line.money
            else None,
        }

    def tests(self, lines: list[Line], scores: Mapping[str, Floats], searches: Sequence[Search]) -> Tests:
        """Luck: over everything that was tried, over the features, over the Sharpe ratios."""
        names = [*scores, *(name for s in searches for name in s.names)]
        tried = np.column_stack([*scores.values(), *(s.tried for s in searches)])
        short = time_blocks(self.as_of, max(2 * self.horizon_s, 10))
        forecasts = data_snooping(block_means(self._products(tried), short), seed=self.seed)
        earning = [line for line in lines if line.money]
        net = np.column_stack([line.money.returns for line in earning if line.money])
        hold = next(i for i, line in enumerate(earning) if line.name == holding(0).name)
        sharpes = np.array(
            [
                np.nan if line.money is None or line.money.sharpe_period is None else line.money.sharpe_period
                for line in earning
            ]
        )
        best = int(np.nanargmax(sharpes)) if np.isfinite(sharpes).any() else None
        others = np.delete(net, hold, axis=1)
        return Tests(
            forecasts=forecasts,
            forecasts_best=names[forecasts.best] if forecasts.best is not None else "",
            tried=len(names),
            earnings=data_snooping(net, seed=self.seed),
            earnings_hold=data_snooping(others, net[:, hold], seed=self.seed),
            earnings_best=earning[best].name if best is not None else "",
            deflated_sharpe=None if best is None else money.deflated_sharpe(net[:, best], sharpes),
            features=feature_tests(
                self.data.features[self.row],
                self.returns,
                time_blocks(self.as_of, self.block_s),
                rate=DISCOVERY_RATE,
            ),
            feature_names=[column.name for column in self.data.contract],
        )

    def _products(self, scores: Floats) -> Floats:
        """[m, k]: normalised rank of score times that of return, within folds: their mean is the folds' mean IC."""
        out = np.zeros_like(scores)
        for number in np.unique(self.fold):
            here = self.fold == number
            out[here] = _standard(rankdata(scores[here], axis=0)) * _standard(
                rankdata(self.returns[here])[:, None]
            )
        return out


def _smaller(fitted: Fitted, market: Market, fold: Fold) -> dict[str, VariantReport]:
    """What the smaller files of the last fold's network lose on the fold's test rows."""
    from python_udfs.training.network_export import compare

    files = fitted.smaller(market.inputs(fitted.kind, fold.train[-_EXPLAINED_ROWS:]))
    windows, returns = market.inputs(fitted.kind, fold.test), market.data.returns[fold.test]
    return {
        name: compare(fitted.onnx(), onnx, windows, returns, fitted.classes) for name, onnx in files.items()
    }


def _standard(ranks: Floats) -> Floats:
    deviation = ranks.std(axis=0)
    return np.asarray((ranks - ranks.mean(axis=0)) / np.where(deviation > 0, deviation, 1))


def _explain(line: Line, attributions: Floats, contract: Sequence[Column]) -> None:
    line.coverage = coverage(attributions, EXPLAINED_SHARE)
    size = np.abs(attributions).sum(axis=0)
    if size.sum() > 0:
        order = np.argsort(-size, kind="stable")[:5]
        line.inputs = [(contract[i].name, float(size[i] / size.sum())) for i in order]


def _adopt(lines: list[Line], models: list[Line]) -> None:
    """Holds every model against the first, the one in use; the stack costs what its members cost."""
    if not models or any(m.latency_ms is None or m.parameters is None for m in models):
        return
    for line in lines:
        if line.name == STACK:
            line.parameters = sum(m.parameters or 0 for m in models)
            line.latency_ms = (
                sum(m.latency_ms[0] for m in models if m.latency_ms),
                sum(m.latency_ms[1] for m in models if m.latency_ms),
            )
            known = [m.coverage for m in models if m.coverage is not None]
            line.coverage = min(known) if len(known) == len(models) else None
            line.note = "not exported; latency and parameters are its members' sums"
    used = models[0]
    used.verdict = "in use"

    def candidate(line: Line) -> Candidate:
        p99 = line.latency_ms[1] if line.latency_ms else None
        return Candidate(line.ic, p99, line.parameters or 0, line.coverage)

    for line in lines:
        if line is not used and (line.key or line.name == STACK):
            verdict = decide(candidate(line), candidate(used), latency_budget_ms=LATENCY_BUDGET_MS)
            line.verdict, line.reasons = ("adopt" if verdict.adopt else "reject"), verdict.reasons
