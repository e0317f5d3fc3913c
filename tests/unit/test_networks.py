"""The sequence models: nothing reads the future, windows end where a history does, the same rows give the same bits, a planted
signal is learned and noise is not, and ONNX says what PyTorch says."""

from __future__ import annotations

import builtins
import importlib
import sys
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import scipy.special
import torch
from scipy.stats import spearmanr
from sklearn.metrics import log_loss

from python_udfs.errors import UserError
from python_udfs.scorer.card import Column, ModelType
from python_udfs.training import losses
from python_udfs.training.dataset import Label
from python_udfs.training.fit_network import Network, _hide_levels, fit_network, purged_tail
from python_udfs.training.metrics import direction
from python_udfs.training.network_export import (
    compare,
    parity,
    parity_windows,
    run,
    to_fp16,
    to_int8,
    to_onnx,
)
from python_udfs.training.network_options import Loss, NetworkOptions
from python_udfs.training.networks import REGIME, Layout, Normalise, build
from python_udfs.training.sequences import Sequences, first_rows
from python_udfs.training.stacking import fit_stack
from tests.oracles import sequence

NETWORKS = [kind for kind in ModelType if kind.is_network]
LEVELS, WINDOW = 4, 9
NAMES = [
    *(
        f"{side}_{kind}_{i + 1}"
        for side in ("bid", "ask")
        for kind in ("gap_bps", "size")
        for i in range(LEVELS)
    ),
    "mid_return",
    "vpin",
    "funding_rate",
    *REGIME,
]
K = len(NAMES)
SMALL = NetworkOptions(hidden=8, epochs=6, batch=64, learning_rate=1e-2, dropout=0.0)
ROWS, TRAIN = 1500, np.arange(1150)


def _market(*, coefficient: float = 4.0, seed: int = 3) -> Sequences:
    """Three instruments. The best bid's mean size over the last three rows decides the return, as far as `coefficient` says."""
    r = np.random.default_rng(seed)
    inputs = r.normal(size=(ROWS, K)).astype(np.float32)
    inputs[:, NAMES.index("funding_rate")] *= 1e-7  # nothing, to a half float
    instrument = np.repeat([0, 1, 2], ROWS // 3)
    start = np.tile(np.arange(ROWS // 3) * 10_000_000, 3)
    start += (start > 2_500_000_000) * 7_200_000_000
    first = first_rows(instrument, start, start + 9_000_000, 3_600_000_000)
    signal = np.array(
        [inputs[max(i - 2, first[i]) : i + 1, NAMES.index("bid_size_1")].mean() for i in range(ROWS)]
    )
    returns = coefficient * signal + r.normal(size=ROWS)
    inputs[r.random(inputs.shape) < 0.05] = np.nan
    last = np.argsort(start, kind="stable")
    return Sequences(
        label=Label("label_cls_1", "1"),
        contract=[Column(name=name, type="Nullable(Float64)") for name in NAMES],
        window=WINDOW,
        inputs=inputs,
        first=first,
        last=last,
        classes=np.sign(np.where(abs(returns) < 0.8, 0, returns))[last].astype(np.int8),
        returns=returns[last],
        as_of=start[last] + 9_000_000,
        known_at=start[last] + 30_000_000,
        instrument=instrument[last],
        instruments=["a", "b", "c"],
    )


@pytest.fixture(scope="module")
def market() -> Sequences:
    return _market()


@pytest.fixture(scope="module")
def fitted(market: Sequences) -> dict[ModelType, Network]:
    return {kind: fit_network(kind, market, TRAIN, seed=1, options=SMALL) for kind in NETWORKS}


def _ic(network: Network, data: Sequences) -> float:
    test = np.arange(len(TRAIN) + 10, ROWS)
    score = direction(network.probabilities(data, test), network.classes)
    return float(spearmanr(score, data.returns[test]).statistic)


# windows


def test_a_window_crosses_neither_an_instrument_nor_a_silence(market: Sequences) -> None:
    data = _market()
    instrument = ["abc"[i] for i in np.repeat([0, 1, 2], ROWS // 3)]
    start = np.empty(ROWS, dtype=np.int64)
    start[data.last] = data.as_of - 9_000_000
    keys = (instrument, start.tolist(), (start + 9_000_000).tolist())
    want = [
        sequence.window(data.inputs, *keys, row=int(i), length=WINDOW, gap=3_600_000_000) for i in data.last
    ]
    got = data.windows(np.arange(ROWS))
    np.testing.assert_array_equal(got, np.stack(want))
    assert len(set(data.first.tolist())) == 6  # three instruments, each with one silence
    assert np.isnan(got[0, :-1]).all()


def test_a_jittered_window_is_an_earlier_one_of_the_same_history(market: Sequences) -> None:
    rows = np.arange(ROWS)
    back = market.windows(rows, np.full(ROWS, 2))
    before = np.maximum(market.last - 2, market.first[market.last])
    np.testing.assert_array_equal(back[:, -1], market.inputs[before])


def test_an_exact_gap_does_not_cut_and_a_longer_one_does() -> None:
    zeros, start = np.zeros(3, dtype=np.int64), np.array([0, 110, 221])
    assert first_rows(zeros, start, start + 10, 100).tolist() == [0, 0, 2]
    assert first_rows(zeros[:0], start[:0], start[:0], 100).tolist() == []


# causality


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("window", [WINDOW, 12])
def test_no_step_reads_a_later_one(kind: ModelType, window: int) -> None:
    torch.manual_seed(0)
    normalise = Normalise(np.zeros(K, dtype=np.float32), np.ones(K, dtype=np.float32))
    network = build(kind, NAMES, normalise, window=window, hidden=8, classes=3, dropout=0.0).eval()
    z = torch.randn(2, window, K)
    with torch.no_grad():
        states = network.states(z)
        steps = states.shape[2]
        stride = -(-window // steps)  # a state stands for so many steps of time, the last for the last
        for later in range(1, window):
            changed = z.clone()
            changed[:, later:] += 1
            after = network.states(changed)
            before = [s for s in range(steps) if window - 1 - (steps - 1 - s) * stride < later]
            assert torch.equal(after[:, :, before], states[:, :, before]), later
            assert not torch.equal(after[:, :, -1], states[:, :, -1]), later


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_last_step_sees_the_first(kind: ModelType) -> None:
    """Of as many as its receptive field holds."""
    torch.manual_seed(0)
    normalise = Normalise(np.zeros(K, dtype=np.float32), np.ones(K, dtype=np.float32))
    seen = {ModelType.DEEPLOB_TCN: 61, ModelType.STUDENT: 29, ModelType.MIXTURE: 29}.get(kind, 60)
    network = build(kind, NAMES, normalise, window=70, hidden=8, classes=3, dropout=0.0).eval()
    z = torch.randn(64, 70, K, requires_grad=True)
    (network.states(z)[:, :, -1] ** 3).sum().backward()
    assert z.grad is not None
    assert z.grad[:, -seen:].abs().sum(dim=(0, 2)).gt(0).all()


# fitting


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_planted_signal_is_learned(
    fitted: dict[ModelType, Network], market: Sequences, kind: ModelType
) -> None:
    network = fitted[kind]
    assert _ic(network, market) > 0.3
    probabilities = network.probabilities(market, np.arange(700))
    assert probabilities.shape == (700, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert network.probabilities(market, np.arange(0)).shape == (0, 3)
    assert network.parameters_count == sum(p.numel() for p in network.module.parameters()) > 100


@pytest.mark.parametrize("kind", NETWORKS)
def test_shuffled_labels_teach_nothing(market: Sequences, kind: ModelType) -> None:
    r = np.random.default_rng(5)
    mixed = replace(market, classes=r.permutation(market.classes))
    network = fit_network(kind, mixed, TRAIN, seed=1, options=replace(SMALL, epochs=3))
    assert abs(_ic(network, market)) < 0.2  # 340 rows: one standard deviation is 0.055


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_same_rows_and_seed_give_the_same_bits(
    fitted: dict[ModelType, Network], market: Sequences, kind: ModelType
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)  # what the caller does changes nothing
    try:
        torch.rand(3)
        again = fit_network(kind, market, TRAIN, seed=1, options=SMALL)
    finally:
        torch.set_num_threads(threads)
    assert to_onnx(again) == to_onnx(fitted[kind])
    assert again.losses == fitted[kind].losses
    other = fit_network(kind, market, TRAIN, seed=2, options=replace(SMALL, epochs=1))
    assert other.losses[0] != again.losses[0]
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_training_rows_are_read(market: Sequences) -> None:
    """What is after the rows changes nothing, and neither do the labels that the stopping slice must not know."""
    r = np.random.default_rng(1)
    changed = replace(
        market,
        classes=np.where(np.arange(ROWS) < len(TRAIN), market.classes, r.permutation(market.classes)),
        returns=np.where(np.arange(ROWS) < len(TRAIN), market.returns, 99.0),
    )
    kept, other = (
        fit_network(ModelType.STUDENT, data, TRAIN, seed=1, options=replace(SMALL, epochs=2, huber=0.5))
        for data in (market, changed)
    )
    assert kept.losses == other.losses


def test_the_slice_that_stops_training_is_purged() -> None:
    as_of = np.repeat(np.arange(50), 2)
    fit, check = purged_tail(as_of, as_of + 5, np.arange(100)[::-1], 0.2)
    cut = as_of[check].min()
    assert cut == 40
    assert (as_of[fit] + 5).max() == cut
    assert set(check) == set(np.flatnonzero(as_of >= cut))
    embargoed, _ = purged_tail(as_of, as_of + 5, np.arange(100), 0.2, embargo_us=3)
    assert (as_of[embargoed] + 8).max() == cut


def test_a_student_learns_from_its_teacher_alone(fitted: dict[ModelType, Network]) -> None:
    """Labels are noise: what it knows it has from the soft targets."""
    data = _market()
    noise = replace(data, classes=np.random.default_rng(8).permutation(data.classes))
    teacher = fitted[ModelType.DEEPLOB_TCN]
    options = replace(SMALL, teacher_share=1.0, patience=6)
    student = fit_network(ModelType.STUDENT, noise, TRAIN, seed=1, options=options, teacher=teacher)
    alone = fit_network(ModelType.STUDENT, noise, TRAIN, seed=1, options=options)
    assert _ic(student, data) > 0.25 > _ic(alone, data) + 0.1
    two = replace(data, classes=np.where(data.classes == 0, 1, data.classes).astype(np.int8))
    with pytest.raises(UserError, match=r"teacher knows the classes \[-1, 0, 1\]"):
        fit_network(ModelType.STUDENT, two, TRAIN, seed=1, options=options, teacher=teacher)


def test_the_gate_reads_the_regime_alone(fitted: dict[ModelType, Network], market: Sequences) -> None:
    rows = np.arange(50)
    shares = fitted[ModelType.MIXTURE].expert_shares(market, rows)
    assert shares.shape == (50, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(shares[:, 0]) > 0
    others = [i for i, name in enumerate(NAMES) if name not in REGIME]
    inputs = market.inputs.copy()
    inputs[:, others] = 7
    same = fitted[ModelType.MIXTURE].expert_shares(replace(market, inputs=inputs), rows)
    np.testing.assert_array_equal(same, shares)
    with pytest.raises(TypeError, match="no experts"):
        fitted[ModelType.STUDENT].expert_shares(market, rows)


@pytest.mark.parametrize("kind", NETWORKS)
def test_attributions_find_the_planted_column(
    fitted: dict[ModelType, Network], market: Sequences, kind: ModelType
) -> None:
    rows = np.arange(200)
    given = fitted[kind].attributions(market, rows)
    assert given.shape == (200, K)
    assert NAMES[int(abs(given).mean(axis=0).argmax())] == "bid_size_1"
    inputs = market.inputs.copy()
    inputs[:, 0] = np.nan
    assert not fitted[kind].attributions(replace(market, inputs=inputs), rows)[:, 0].any()


@pytest.mark.parametrize(
    "options",
    [
        {"loss": Loss.FOCAL},
        {"loss": Loss.ASYMMETRIC},
        {"label_smoothing": 0.1, "huber": 0.5},
        {"level_dropout": 0.2, "time_jitter": 1},
    ],
    ids=str,
)
def test_every_option_still_learns(market: Sequences, options: dict[str, object]) -> None:
    network = fit_network(ModelType.STUDENT, market, TRAIN, seed=1, options=replace(SMALL, **options))  # type: ignore[arg-type]
    assert _ic(network, market) > 0.25
    plain = fit_network(ModelType.STUDENT, market, TRAIN, seed=1, options=SMALL)
    assert network.losses != plain.losses


def test_level_dropout_hides_whole_levels() -> None:
    book = torch.tensor(Layout.of(NAMES).book)
    hidden = np.zeros((2, LEVELS), dtype=np.bool_)
    hidden[1, 2] = True
    out = _hide_levels(torch.zeros(2, 5, K), book, hidden)
    gone = {NAMES[i] for i in torch.isnan(out[1]).all(dim=0).nonzero().flatten().tolist()}
    assert gone == {"bid_gap_bps_3", "bid_size_3", "ask_gap_bps_3", "ask_size_3"}
    assert int(torch.isnan(out).sum()) == 5 * 4


def test_bad_rows_and_options_are_refused(market: Sequences) -> None:
    one = replace(market, classes=np.ones(ROWS, dtype=np.int8))
    with pytest.raises(UserError, match="have the class 1: nothing to learn"):
        fit_network(ModelType.STUDENT, one, TRAIN, seed=1)
    with pytest.raises(UserError, match="are none: nothing to learn"):
        fit_network(ModelType.STUDENT, market, TRAIN[:0], seed=1)
    with pytest.raises(UserError, match="at least 50 each are needed"):
        fit_network(ModelType.STUDENT, market, TRAIN[:100], seed=1)
    for wrong, message in (
        ({"epochs": 0}, "epochs >= 1"),
        ({"dropout": 1.0}, "dropout in"),
        ({"hidden": 12}, "multiple of 8"),
    ):
        with pytest.raises(UserError, match=message):
            fit_network(ModelType.STUDENT, market, TRAIN, seed=1, options=replace(SMALL, **wrong))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not a network"):
        fit_network(ModelType.LOGISTIC, market, TRAIN, seed=1, options=SMALL)
    flow = replace(market, contract=market.contract[16:18], inputs=market.inputs[:, 16:18])
    for kind, message in (
        (ModelType.DEEPLOB_TCN, "bid_gap_bps_1"),
        (ModelType.MIXTURE, "realized_volatility_60s"),
    ):
        with pytest.raises(UserError, match=message):
            fit_network(kind, flow, TRAIN, seed=1, options=SMALL)
    with pytest.raises(ValueError, match="other columns"):
        fit_network(ModelType.STUDENT, flow, TRAIN, seed=1, options=SMALL).probabilities(market, TRAIN)


def test_columns_without_values_or_movement_do_no_harm() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    rows[:, 0], rows[:, 1], rows[0, 2] = np.nan, 3.0, np.inf
    normalise = Normalise.fitted(rows)
    z = normalise(torch.from_numpy(rows))
    assert bool(torch.isfinite(z).all())
    assert not z[:, :2].any()
    column = rows[:, 3].astype(np.float64)
    np.testing.assert_allclose(normalise.median[3], np.median(column), rtol=1e-6)
    np.testing.assert_allclose(
        normalise.scale[3], np.subtract(*np.quantile(column, [0.75, 0.25])) / 1.349, rtol=1e-6
    )


def test_without_pytorch_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "torch":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "python_udfs.training.pytorch")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="run `make torch`"):
        importlib.import_module("python_udfs.training.pytorch")


# losses


def test_losses_equal_their_formulas() -> None:
    r = np.random.default_rng(0)
    logits, labels = r.normal(size=(7, 3)), r.integers(0, 3, 7)
    p = scipy.special.softmax(logits, axis=1)
    own = p[np.arange(7), labels]
    given = torch.from_numpy(logits)
    target = losses.smoothed(torch.from_numpy(labels), 3, 0.0).double()
    entropy = losses.cross_entropy(given, target).numpy()
    assert entropy.mean() == pytest.approx(log_loss(labels, p, labels=[0, 1, 2]))
    np.testing.assert_allclose(losses.focal(given, target, 2.0), -((1 - own) ** 2) * np.log(own))
    np.testing.assert_allclose(losses.focal(given, target, 0.0), entropy)
    smooth = losses.smoothed(torch.tensor([2]), 3, 0.3).numpy()
    np.testing.assert_allclose(smooth, [[0.1, 0.1, 0.8]], rtol=1e-6)

    cost = losses.cost_matrix([-1, 0, 1])
    assert cost.tolist() == [[0.0, 0.5, 2.0], [1.0, 0.0, 1.0], [2.0, 0.5, 0.0]]
    expected = [sum(cost[t, j].item() * p[i, j] for j in range(3)) for i, t in enumerate(labels)]
    np.testing.assert_allclose(losses.asymmetric(given, target, cost.double()), entropy + expected)

    values = torch.tensor([0.5, -3.0])
    assert losses.huber(values, torch.zeros(2)).tolist() == [0.125, 2.5]

    teacher = r.normal(size=(7, 3))
    soft, said = (scipy.special.softmax(x / 2, axis=1) for x in (teacher, logits))
    divergence = scipy.special.rel_entr(soft, said).sum(axis=1)
    both = losses.distilled(
        torch.from_numpy(entropy), given, torch.from_numpy(teacher), temperature=2.0, share=0.7
    )
    np.testing.assert_allclose(both, 0.3 * entropy + 0.7 * 4 * divergence)


# stacking


def test_a_stack_is_as_good_as_its_best_model_and_ignores_noise() -> None:
    r = np.random.default_rng(2)
    labels = r.integers(-1, 2, 3000).astype(np.int8)
    views = [
        scipy.special.softmax(1.5 * np.eye(3)[labels + 1] + r.normal(size=(3000, 3)), axis=1)
        for _ in range(2)
    ]
    noise = scipy.special.softmax(r.normal(size=(3000, 3)), axis=1)
    half = slice(1500, None)
    base = [*views, noise]
    stack = fit_stack([p[:1500] for p in base], labels[:1500], seed=1)
    assert stack.classes == [-1, 0, 1]
    said = log_loss(labels[half], stack.probabilities([p[half] for p in base]))
    assert said < min(log_loss(labels[half], p[half]) for p in base) - 0.05
    with pytest.raises(UserError, match="one class"):
        fit_stack([noise], np.zeros(3000, dtype=np.int8), seed=1)
    with pytest.raises(ValueError, match="each row"):
        fit_stack([noise[:5]], labels, seed=1)


# export


@pytest.mark.parametrize("kind", NETWORKS)
def test_onnx_says_what_pytorch_says(
    fitted: dict[ModelType, Network], market: Sequences, kind: ModelType
) -> None:
    network = fitted[kind]
    model = to_onnx(network)
    test = np.arange(1160, ROWS)
    windows = market.windows(test)
    assert parity(network, model, parity_windows(windows)) < 1e-5
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    [given], [said] = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("features", "tensor(float)", ["batch", WINDOW, K])
    assert (said.name, said.type) == ("probabilities", "tensor(float)")
    for batch in (1, 16, 64):
        np.testing.assert_allclose(run(model, windows[:batch]), network.predict(windows[:batch]), atol=1e-5)
    nothing = run(model, np.full((2, WINDOW, K), np.nan, dtype=np.float32))
    np.testing.assert_allclose(nothing.sum(axis=1), 1, atol=1e-5)

    other = fit_network(kind, market, TRAIN, seed=2, options=replace(SMALL, epochs=1))
    with pytest.raises(UserError, match="differs from the trained one"):
        parity(other, model, windows)


@pytest.mark.parametrize("kind", NETWORKS)
def test_smaller_variants_lose_little(
    fitted: dict[ModelType, Network], market: Sequences, kind: ModelType
) -> None:
    network = fitted[kind]
    model = to_onnx(network)
    test = np.arange(1160, ROWS)
    windows, returns = market.windows(test), market.returns[test]
    for variant, limit in ((to_fp16(model), 5e-3), (to_int8(model, market.windows(TRAIN)), 0.15)):
        session = ort.InferenceSession(variant, providers=["CPUExecutionProvider"])
        assert {x.type for x in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
        report = compare(model, variant, windows, returns, network.classes)
        assert 0 < report.max_abs_diff < limit
        assert report.size == len(variant)
        assert report.ic is not None and report.ic_loss is not None
        assert report.ic > 0.25
        assert abs(report.ic_loss) < 0.05
    same = compare(model, model, windows, returns, network.classes)
    assert (same.max_abs_diff, same.ic_loss) == (0, 0)
    assert same.ic == pytest.approx(_ic(network, market), abs=0.02)
    assert compare(model, model, windows, np.zeros(len(test)), network.classes).ic is None
