"""The ladder on arrays: a planted signal is found, shuffled labels are chance, and no rule sees its test rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from python_udfs.errors import UserError
from python_udfs.scorer.card import Column, ModelType, load_model
from python_udfs.training import train as training
from python_udfs.training.calibrate import Method
from python_udfs.training.context import Context
from python_udfs.training.dataset import Dataset, Label
from python_udfs.training.ladder import EXPERT, NAMES, STACK, Ladder, Line, climb, stack
from python_udfs.training.report import HEAD, cells, verdicts, write_training_report
from python_udfs.training.traditions import Search, random_search, scaled, single_features
from python_udfs.training.train import (
    BASELINES,
    Market,
    Options,
    OutOfSample,
    classes_of,
    cut_folds,
    fit_model,
    walk,
)

N, INSTRUMENTS = 1500, 3
OPTIONS = Options(folds=3)


def dataset(n: int = N, seed: int = 5) -> Dataset:
    """A row of each of three instruments every 10 s; `signal` decides the return of the next 30 s, the rest is noise."""
    r = np.random.default_rng(seed)
    features = r.normal(size=(n, 5)).astype(np.float32)
    returns = (0.7 * features[:, 1] + r.normal(size=n)) * 1e-5
    features[::11, 2] = np.nan
    as_of = np.arange(n) // INSTRUMENTS * 10_000_000
    return Dataset(
        label=Label("label_cls_3", "3"),
        contract=[Column(name=name, type="Nullable(Float64)") for name in ("a", "signal", "c", "d", "e")],
        features=features,
        classes=np.where(np.abs(returns) < 0.6e-5, 0, np.sign(returns)).astype(np.int8),
        returns=returns,
        as_of=as_of,
        known_at=as_of + 30_000_000,
        instrument=np.arange(n) % INSTRUMENTS,
        instruments=["x:spot:A", "x:spot:B", "x:spot:C"],
    )


def context(data: Dataset) -> Context:
    """Prices that rise a basis point a row, one regime after the other, an expert who speaks at every tenth row."""
    n = len(data.as_of)
    expert = np.full(n, np.nan)
    expert[::10] = np.sign(data.returns[::10])
    return Context(
        mid=100.0 * 1.0001 ** (np.arange(n) // INSTRUMENTS),
        slippage_bps=np.full(n, 0.5),
        notional_per_second=np.full(n, 1e4),
        regime=np.arange(n) // 30 % 3 - 1,
        returns={"3": data.returns},
        expert=expert,
        expert_note="",
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    data, folder = dataset(), tmp_path_factory.mktemp("models")
    return climb(
        Market(data),
        BASELINES,
        OPTIONS,
        context=context(data),
        folders={kind: folder / kind.value for kind in BASELINES},
    )


@pytest.fixture(scope="module")
def chance() -> Ladder:
    data = dataset()
    return climb(Market(data), BASELINES, OPTIONS, context=context(data), shuffled=True)


def line(ladder: Ladder, name: str) -> Line:
    return next(x for x in ladder.lines if x.name == name)


MODELS = (NAMES[ModelType.LOGISTIC], NAMES[ModelType.LIGHTGBM], STACK)


def test_the_planted_signal_is_learned_by_what_can_learn(learned: Ladder) -> None:
    for name in (*MODELS, "best single feature"):
        found = line(learned, name)
        assert found.ic_low is not None, name
        assert found.ic_low > 0.2, name
        assert found.auc is not None
        assert found.auc > 0.65, name
    assert line(learned, "best single feature").note == "signal"
    assert learned.tests.forecasts.reality_check is not None
    assert learned.tests.forecasts.reality_check < 0.02
    assert "signal" in learned.tests.discovered
    assert len(learned.tests.discovered) <= 2, "one in ten discoveries may be false"
    for name in MODELS:
        skill = line(learned, name).skill
        assert skill is not None
        assert skill > 0.02, name


def test_on_shuffled_labels_everything_collapses_to_chance(chance: Ladder) -> None:
    for name in (*MODELS, "best single feature", "random search, best of 200", EXPERT):
        found = line(chance, name)
        assert found.ic is not None
        assert abs(found.ic) < 0.15, name
        assert found.auc is not None
        assert abs(found.auc - 0.5) < 0.1, name
    for name in MODELS:
        assert (line(chance, name).skill or 0) < 0.01, name
    assert chance.tests.forecasts.reality_check is not None
    assert chance.tests.forecasts.reality_check > 0.05
    assert chance.tests.discovered == []
    assert any("no better than luck" in sentence for sentence in verdicts(chance))
    assert not chance.cards
    assert chance.shuffled


def test_every_line_is_of_the_same_rows_and_folds(learned: Ladder) -> None:
    tested = sum(len(fold.test) for fold in learned.folds)
    assert {x.rows for x in learned.lines if x.name != EXPERT} == {tested}
    assert line(learned, EXPERT).rows == tested // 10
    assert {len(x.fold_ics) for x in learned.lines} == {3}
    assert all(len(cells(x)) == len(HEAD) for x in learned.lines)
    assert set(line(learned, STACK).regimes) == {"calm", "normal", "active"}
    assert line(learned, STACK).horizons["3"] == line(learned, STACK).ic


def test_an_expert_who_is_right_scores_highest(learned: Ladder) -> None:
    assert learned.best is line(learned, EXPERT)


def test_buy_and_hold_earns_the_price_and_pays_twice(learned: Ladder) -> None:
    earned = line(learned, "buy and hold").money
    assert earned is not None
    steps = sum(len(fold.test) for fold in learned.folds) // INSTRUMENTS - 1
    assert earned.gross == pytest.approx(steps * 1e-4)
    assert earned.cost == pytest.approx(2 * 4.5e-4)
    assert line(learned, "buy and hold").ic is None


def test_models_are_priced_against_the_one_in_use(learned: Ladder) -> None:
    linear, trees, both = (line(learned, name) for name in MODELS)
    assert linear.verdict == "in use"
    assert {trees.verdict, both.verdict} <= {"adopt", "reject"}
    assert linear.parameters == 3 * (5 + 1)
    assert both.parameters == (linear.parameters or 0) + (trees.parameters or 0)
    assert linear.latency_ms is not None
    assert linear.latency_ms[0] > 0
    assert linear.inputs[0][0] == "signal"
    assert trees.inputs[0][0] == "signal"
    for card in learned.cards:
        assert card.parity_max_abs_diff < 1e-4


def test_the_page_is_whole(learned: Ladder, chance: Ladder, tmp_path: Path) -> None:
    for ladder in (learned, chance):
        page = tmp_path / "training.html"
        write_training_report(ladder, page)
        text = page.read_text()
        for figure in text.split("<figure>")[1:]:
            body = "<figure>" + figure.split("</figure>")[0] + "</figure>"
            ElementTree.fromstring(body.replace("<br>", "<br/>"))
        assert all(x.name in text for x in ladder.lines)
        assert "http://" not in text.replace("http://www.w3.org", "")


def test_rules_choose_on_training_rows_alone() -> None:
    data = dataset()
    folds = cut_folds(data, OPTIONS)
    spoiled = data.returns.copy()
    spoiled[folds[0].test] *= -50
    first = slice(0, len(folds[0].test))
    for rule in (random_search, single_features):
        before, after = rule(data, folds), rule(replace(data, returns=spoiled), folds)
        assert np.array_equal(before.tried[first], after.tried[first])
        assert np.array_equal(before.best[0].score[first], after.best[0].score[first])
        assert not np.array_equal(before.tried, after.tried), "later folds train on those rows"


def test_a_feature_that_points_the_other_way_is_turned_round() -> None:
    data = dataset()
    folds = cut_folds(data, OPTIONS)
    turned: Search = single_features(replace(data, returns=-data.returns), folds)
    assert turned.best[0].chosen == ("-signal",) * 3
    assert np.array_equal(turned.best[0].score, -single_features(data, folds).best[0].score)


def test_scales_are_those_of_the_training_rows_and_what_is_missing_is_nothing() -> None:
    train = np.array([[0.0, 7, np.nan], [1, 7, np.nan], [2, 7, np.nan], [3, 7, np.nan], [4, 7, np.nan]])
    z = scaled(train, np.array([[2.0, 7, 3], [np.nan, 9, np.inf], [1e9, 7, -1]]))
    width = 2 / 1.349
    assert z[0].tolist() == [0, 0, 3]
    assert z[1].tolist() == [0, 2, 0]
    assert z[2].tolist() == [5, 0, -1]
    assert scaled(train, np.array([[3.0, 7, 0]]))[0, 0] == pytest.approx(1 / width)


def test_a_stack_uses_only_labels_that_were_known() -> None:
    data = dataset()
    market, folds, classes = Market(data), cut_folds(data, OPTIONS), classes_of(data)
    outs = list(walk(BASELINES, market, folds, classes, o=OPTIONS).values())
    mean = (outs[0].probabilities + outs[1].probabilities) / 2
    stacked = stack(outs, data, folds, classes, OPTIONS)
    assert np.array_equal(stacked.probabilities[outs[0].fold == 1], mean[outs[0].fold == 1])
    assert not np.allclose(stacked.probabilities[outs[0].fold == 3], mean[outs[0].fold == 3])
    never = replace(data, known_at=np.full(N, 10**15))
    assert np.array_equal(stack(outs, never, folds, classes, OPTIONS).probabilities, mean)
    # labels of the last fold are no part of it
    later = data.classes.copy()
    later[folds[2].test] = 1
    assert np.array_equal(
        stack(outs, replace(data, classes=later), folds, classes, OPTIONS).probabilities,
        stacked.probabilities,
    )


def test_a_stack_finds_out_which_model_knows() -> None:
    data = dataset()
    folds, classes = cut_folds(data, OPTIONS), classes_of(data)
    good = walk([ModelType.LOGISTIC], Market(data), folds, classes, o=OPTIONS)[ModelType.LOGISTIC]
    noise = np.random.default_rng(0).dirichlet([1, 1, 1], len(good.row))
    bad = OutOfSample(good.fold, good.row, noise, good.prior, good.cut)
    last = good.fold == 3
    truth = data.classes[good.row][last][:, None] == np.array(classes)

    def loss(out: OutOfSample) -> float:
        return float(-np.log(out.probabilities[last][truth]).mean())

    stacked = stack([bad, good], data, folds, classes, OPTIONS)
    assert loss(stacked) < loss(good) + 0.03 < loss(bad)


def test_rolling_folds_train_on_as_many_rows_as_the_first() -> None:
    data = dataset()
    rolling = cut_folds(data, replace(OPTIONS, rolling_share=0.3))
    assert {len(fold.train) for fold in rolling} == {round(0.3 * N)}
    expanding = cut_folds(data, OPTIONS)
    assert [fold.test.tolist() for fold in rolling] == [fold.test.tolist() for fold in expanding]


@pytest.mark.parametrize("method", list(Method))
def test_a_calibrated_model_exports_its_calibration(method: Method, tmp_path: Path) -> None:
    data, o = dataset(900), Options(folds=2, calibrate=method)
    ladder = climb(Market(data), [ModelType.LIGHTGBM], o, folders={ModelType.LIGHTGBM: tmp_path / "trees"})
    card, onnx = load_model(tmp_path / "trees")
    assert b"calibration/" in onnx
    assert card.parity_max_abs_diff < 1e-4
    plain = climb(Market(data), [ModelType.LIGHTGBM], replace(o, calibrate=None))
    before, after = plain.lines[-2].metrics, ladder.lines[-2].metrics
    assert before
    assert after
    assert after.log_loss != before.log_loss
    if method is Method.PLATT:  # isotonic steps want more rows
        assert after.log_loss < before.log_loss, "small trees are too sure of themselves"


def test_a_calibrator_never_sees_the_rows_behind_its_model() -> None:
    """With few rows trees know their own labels; a calibration fitted on those would trust them."""
    data = dataset(900)
    rows = np.arange(500)
    fitted = fit_model(ModelType.LIGHTGBM, Market(data), rows, Options(calibrate=Method.PLATT))
    assert fitted.calibrator is not None
    assert (fitted.calibrator.constants[:, 0] < 0.9).all()


def test_what_does_not_fit_together_is_said() -> None:
    data = dataset(300)
    with pytest.raises(UserError, match="needs sequence_inputs"):
        fit_model(ModelType.STUDENT, Market(data), np.arange(200), OPTIONS)
    with pytest.raises(UserError, match="are too few for 3 folds"):
        climb(Market(dataset(60)), BASELINES, OPTIONS)


def test_tuning_chooses_inside_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that learns nothing is there to be rejected; no inner fold holds a row of the outer test."""
    kind, data = ModelType.LOGISTIC, dataset()
    seen: list[np.ndarray] = []
    whole = training.fit

    def watched(kind: ModelType, rows: np.ndarray, *rest: object, **settings: object) -> object:
        seen.append(rows)
        return whole(kind, rows, *rest, **settings)

    monkeypatch.setattr(training, "fit", watched)
    monkeypatch.setitem(training.SETTINGS, kind, ({"C": 1e-9}, {"C": 1.0}))
    fold = cut_folds(data, OPTIONS)[0]
    fitted = fit_model(kind, Market(data), fold.train, replace(OPTIONS, tune=True))
    assert fitted.setting == {"C": 1.0}
    assert len(seen) == 2 * 2 + 1, "two settings on two inner folds, and the fit"
    trained = {row.tobytes() for row in data.features[fold.train]}
    assert {row.tobytes() for rows in seen for row in rows} <= trained


def test_the_hour_of_the_day_is_learnt_from_the_folds_training_rows() -> None:
    data = dataset()
    hour = data.as_of // 3_600_000_000
    shifted = replace(data, features=data.features + (100 * hour[:, None]).astype(np.float32))
    fold = cut_folds(data, OPTIONS)[-1]
    plain = Market(shifted).by_time_of_day(fold.train).data.features
    early = np.flatnonzero(hour == 0)
    assert abs(np.nanmedian(plain[early])) < 0.2
    wild = shifted.features.copy()
    wild[fold.test] *= 1000
    again = Market(replace(shifted, features=wild)).by_time_of_day(fold.train).data.features
    np.testing.assert_array_equal(again[fold.train], plain[fold.train])
    ladder = climb(Market(data), BASELINES, replace(OPTIONS, time_of_day=True), folders={})
    assert not ladder.cards


@pytest.mark.parametrize("kind", BASELINES)
def test_rows_without_weight_teach_nothing(kind: ModelType) -> None:
    """Half of the rows say the reverse; they weigh nothing, and the model is that of the other half."""
    data = dataset()
    liar = np.arange(N) % 2 == 1
    lying = replace(data, classes=np.where(liar, -data.classes, data.classes).astype(np.int8))
    rows, classes = np.arange(N), classes_of(data)

    def score(data: Dataset) -> float:
        said = fit_model(kind, Market(data), rows, OPTIONS).of_rows(Market(data), rows, classes)
        return float(np.corrcoef(said[:, 2] - said[:, 0], data.features[:, 1])[0, 1])

    assert score(lying) < 0.5
    assert score(replace(lying, weights=np.where(liar, 0.0, 2.0))) > 0.8
