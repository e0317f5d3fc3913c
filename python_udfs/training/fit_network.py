"""Fits a sequence model. The same rows, options and seed give the same bits on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from python_udfs.errors import UserError
from python_udfs.scorer.card import ModelType
from python_udfs.training import losses
from python_udfs.training.network_options import Loss, NetworkOptions
from python_udfs.training.networks import Layout, Mixture, Normalise, SequenceNetwork, build
from python_udfs.training.pytorch import torch
from python_udfs.training.sequences import Sequences

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_PREDICT_BATCH: Final = 1024
_MIN_ROWS: Final = 50


@dataclass(frozen=True)
class Network:
    """A fitted network."""

    kind: ModelType
    module: SequenceNetwork = field(repr=False)
    classes: list[int]  # the order of the outputs
    names: list[str]  # of the k inputs
    window: int
    losses: list[tuple[float, float]]  # mean loss of training and log loss of validation, per epoch

    @property
    def parameters_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def predict(self, windows: npt.NDArray[np.float32]) -> Floats:
        """Probabilities [b, c] of windows [b, window, k]."""
        parts = [np.zeros((0, len(self.classes)))]
        with _one_thread(), torch.no_grad():
            for start in range(0, len(windows), _PREDICT_BATCH):
                logits, _ = self.module(torch.from_numpy(windows[start : start + _PREDICT_BATCH]))
                parts.append(torch.softmax(logits, dim=1).numpy().astype(np.float64))
        return np.concatenate(parts)

    def probabilities(self, data: Sequences, rows: Rows) -> Floats:
        """Probabilities [len(rows), c] of these samples."""
        return self._each(data, rows, self.predict, len(self.classes))

    def attributions(self, data: Sequences, rows: Rows) -> Floats:
        """What each input adds to P(up) - P(down), to first order: gradient times its distance from the median in scales,
        summed over time [len(rows), k]. A missing input adds nothing.
        """

        def of(windows: npt.NDArray[np.float32]) -> Floats:
            with _one_thread():
                z = self.module.normalise(torch.from_numpy(windows)).requires_grad_()
                logits, _ = self.module.from_normalised(z)
                direction = torch.sign(torch.tensor(self.classes, dtype=torch.float32))
                (gradient,) = torch.autograd.grad((torch.softmax(logits, dim=1) @ direction).sum(), z)
                return cast(Floats, (gradient * z).sum(dim=1).detach().numpy().astype(np.float64))

        return self._each(data, rows, of, len(self.names))

    def expert_shares(self, data: Sequences, rows: Rows) -> Floats:
        """How much each expert of a mixture counts in these samples: [len(rows), experts], rows sum to 1."""
        if not isinstance(self.module, Mixture):
            raise TypeError(f"{self.kind} has no experts")
        mixture = self.module

        def of(windows: npt.NDArray[np.float32]) -> Floats:
            with _one_thread(), torch.no_grad():
                return mixture.shares(mixture.normalise(torch.from_numpy(windows))).numpy().astype(np.float64)

        return self._each(data, rows, of, len(mixture.experts))

    def _each(self, data: Sequences, rows: Rows, of, width: int) -> Floats:  # type: ignore[no-untyped-def]
        """`of` of the samples' windows, so many at a time that memory stays small."""
        if data.names != self.names or data.window != self.window:
            raise ValueError("these are other columns, or another window, than the network was fitted on")
        parts = [
            of(data.windows(rows[start : start + _PREDICT_BATCH]))
            for start in range(0, len(rows), _PREDICT_BATCH)
        ]
        return np.concatenate([np.zeros((0, width)), *parts])


def purged_tail(
    as_of: npt.NDArray[np.int64],
    known_at: npt.NDArray[np.int64],
    rows: Rows,
    share: float,
    embargo_us: int = 0,
) -> tuple[Rows, Rows]:
    """Cuts training rows in two by time: (those that train, the last `share`). No label of the first overlaps the second.

    as_of, known_at: [n] microseconds; rows: numbers of rows of those.
    """
    rows = rows[np.argsort(as_of[rows], kind="stable")]
    cut = as_of[rows[min(round(len(rows) * (1 - share)), len(rows) - 1)]]
    before = (as_of[rows] < cut) & (known_at[rows] + embargo_us <= cut)
    return rows[before], rows[as_of[rows] >= cut]


def fit_network(
    kind: ModelType,
    data: Sequences,
    train_rows: Rows,
    *,
    seed: int,
    options: NetworkOptions | None = None,
    teacher: Network | None = None,
    weights: Floats | None = None,
) -> Network:
    """Trains a network on some samples.

    Args:
        kind: which one.
        data: all samples.
        train_rows: [n] numbers of the samples that may be used, for whatever purpose.
        seed: of everything random.
        options: see NetworkOptions.
        teacher: its probabilities of the training rows are learned beside the labels. Fit it on the same rows.
        weights: [n samples], how much each counts; None: all alike.

    Raises:
        UserError: one class only, too few rows, or columns that this network needs are not there.
    """
    o = options or NetworkOptions()
    o.check()
    classes = [int(name) for name in np.unique(data.classes[train_rows])]
    if len(classes) < 2:
        which = f"have the class {classes[0]}" if classes else "are none"
        raise UserError(
            f"all {len(train_rows)} training rows {which}: nothing to learn. "
            "Choose another label or horizon, ingest more data, or use fewer folds"
        )
    if teacher and teacher.classes != classes:
        raise UserError(
            f"the teacher knows the classes {teacher.classes}, the rows {classes}: fit it on them"
        )
    fit_rows, check_rows = purged_tail(
        data.as_of, data.known_at, train_rows, o.validation_share, o.embargo_us
    )
    if min(len(fit_rows), len(check_rows)) < _MIN_ROWS:
        raise UserError(
            f"of {len(train_rows)} training rows {len(fit_rows)} are left to train and {len(check_rows)} to decide when "
            f"to stop, at least {_MIN_ROWS} each are needed: ingest more data, use fewer folds or a shorter horizon"
        )
    with _deterministic(seed, o.threads):
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if o.device == "auto" else o.device
        )
        module = build(
            kind,
            data.names,
            Normalise.fitted(data.inputs[data.last[fit_rows]]),
            window=data.window,
            hidden=o.hidden,
            classes=len(classes),
            dropout=o.dropout,
        ).to(device)
        history = _train(
            module,
            data,
            classes=classes,
            fit_rows=fit_rows,
            check_rows=check_rows,
            o=o,
            seed=seed,
            device=device,
            teacher=teacher,
            weights=weights,
        )
        return Network(kind, module.cpu().eval(), classes, data.names, data.window, history)


def _train(
    module: SequenceNetwork,
    data: Sequences,
    *,
    classes: Sequence[int],
    fit_rows: Rows,
    check_rows: Rows,
    o: NetworkOptions,
    seed: int,
    device: torch.device,
    teacher: Network | None,
    weights: Floats | None,
) -> list[tuple[float, float]]:
    """Trains in place and leaves the weights of the best epoch."""
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(np.searchsorted(classes, data.classes)).to(device)
    values = torch.from_numpy(_scaled(data.returns, fit_rows)).to(device)
    counts = None if weights is None else torch.from_numpy(weights).to(device, torch.float32)
    cost = losses.cost_matrix(classes).to(device)
    soft = torch.from_numpy(
        np.log(np.maximum(teacher.probabilities(data, fit_rows), 1e-12)) if teacher else np.zeros((0, 0))
    ).to(device, torch.float32)
    levels = torch.tensor(Layout.of(data.names).book, device=device)
    adam = torch.optim.AdamW(module.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
    best, best_state, history = np.inf, copy.deepcopy(module.state_dict()), []
    stale = 0
    for _ in range(o.epochs):
        module.train()
        total = 0.0
        order = random.permutation(len(fit_rows))
        for start in range(0, len(order), o.batch):
            some = order[start : start + o.batch]
            rows = fit_rows[some]
            back = random.integers(0, o.time_jitter + 1, len(rows)) if o.time_jitter else 0
            x = torch.from_numpy(data.windows(rows, back)).to(device)
            if o.level_dropout:
                x = _hide_levels(x, levels, random.random((len(rows), levels.shape[1])) < o.level_dropout)
            logits, value = module(x)
            at = torch.from_numpy(rows).to(device)
            target = losses.smoothed(labels[at], len(classes), o.label_smoothing)
            match o.loss:
                case Loss.CROSS_ENTROPY:
                    loss = losses.cross_entropy(logits, target)
                case Loss.FOCAL:
                    loss = losses.focal(logits, target, o.focal_gamma)
                case Loss.ASYMMETRIC:
                    loss = losses.asymmetric(logits, target, cost)
            if teacher:
                loss = losses.distilled(
                    loss,
                    logits,
                    soft[torch.from_numpy(some).to(device)],
                    temperature=o.temperature,
                    share=o.teacher_share,
                )
            if o.huber:
                loss = loss + o.huber * losses.huber(value, values[at])
            if counts is not None:
                loss = loss * counts[at]
            mean = loss.mean()
            if isinstance(module, Mixture) and o.balance:
                shares = module.shares(module.normalise(x)).mean(dim=0)
                mean = mean + o.balance * (len(shares) * (shares**2).sum() - 1)
            adam.zero_grad()
            mean.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()
            total += float(mean.detach()) * len(rows)
        checked = _log_loss(module, data, check_rows, labels, device)
        history.append((total / len(order), checked))
        if checked < best:
            best, best_state, stale = checked, copy.deepcopy(module.state_dict()), 0
        else:
            stale += 1
            if stale >= o.patience:
                break
    module.load_state_dict(best_state)
    return history


def _log_loss(
    module: SequenceNetwork, data: Sequences, rows: Rows, labels: torch.Tensor, device: torch.device
) -> float:
    module.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), _PREDICT_BATCH):
            some = rows[start : start + _PREDICT_BATCH]
            logits, _ = module(torch.from_numpy(data.windows(some)).to(device))
            truth = labels[torch.from_numpy(some).to(device)]
            total += float(torch.nn.functional.cross_entropy(logits, truth, reduction="sum"))
    return total / len(rows)


def _scaled(returns: Floats, rows: Rows) -> npt.NDArray[np.float32]:
    """Returns [n] cut off at the 1 % and 99 % quantiles of `rows`, in their standard deviations."""
    low, high = np.quantile(returns[rows], [0.01, 0.99])
    clipped = np.clip(returns, low, high)
    scaled = (clipped - clipped[rows].mean()) / (clipped[rows].std() or 1.0)
    return np.asarray(scaled, dtype=np.float32)


def _hide_levels(x: torch.Tensor, levels: torch.Tensor, hidden: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Windows with some levels of the book missing. levels: columns [4, levels]; hidden: [b, levels]."""
    mask = torch.zeros((len(x), x.shape[2]), dtype=torch.bool, device=x.device)
    mask[:, levels.flatten()] = torch.from_numpy(np.tile(hidden, (1, len(levels)))).to(x.device)
    return x.masked_fill(mask.unsqueeze(1), float("nan"))


@contextmanager
def _one_thread(threads: int = 1) -> Iterator[None]:
    """So many threads: sums do not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deterministic(seed: int, threads: int) -> Iterator[None]:
    """Seeded and repeatable inside; the caller's generators and settings are as before afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(), _one_thread(threads):
        torch.manual_seed(seed)
        # a GPU may lack one of them: it says so and goes on
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
