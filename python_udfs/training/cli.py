"""`marketprism train`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, Metrics, ModelType
from python_udfs.settings import settings
from python_udfs.training.dataset import DEFAULT_FEATURES, read_dataset
from python_udfs.training.network_options import Loss, NetworkOptions

if TYPE_CHECKING:
    from python_udfs.training.ladder import Ladder
    from python_udfs.training.train import Market


class Scheme(StrEnum):
    EXPANDING = "expanding"
    ROLLING = "rolling"


class Weigh(StrEnum):
    ALIKE = "alike"
    UNIQUENESS = "uniqueness"


class Calibrate(StrEnum):
    NONE = "none"
    ISOTONIC = "isotonic"
    PLATT = "platt"


def train_command(
    *,
    model: Annotated[
        list[ModelType] | None,
        typer.Option(
            "--model", help="Which model; repeat for several. Default: all, or without PyTorch the baselines."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model's folder. Default: the model's.")] = "",
    label: Annotated[str, typer.Option(help="The class column of training_set.")] = "label_cls_3",
    features: Annotated[
        str, typer.Option(help="Columns of feature_vector, by commas; networks read all of sequence_inputs.")
    ] = ",".join(DEFAULT_FEATURES),
    feature_version: Annotated[int, typer.Option(min=1, help="Version of feature_vector.")] = 1,
    folds: Annotated[int, typer.Option(min=1, help="Test periods of the walk-forward.")] = 5,
    first_train_share: Annotated[
        float, typer.Option(help="Share of the rows before the first of them.")
    ] = 0.4,
    scheme: Annotated[
        Scheme, typer.Option(help="Train on all rows before a fold, or on as many as before the first.")
    ] = Scheme.EXPANDING,
    embargo: Annotated[
        float, typer.Option(min=0, help="Seconds a label must have been known to train.")
    ] = 0.0,
    calibrate: Annotated[
        Calibrate, typer.Option(help="Calibrate probabilities inside the folds; twice the time.")
    ] = Calibrate.NONE,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Choose each model's settings inside every fold; some five times the time."
        ),
    ] = False,
    weigh: Annotated[
        Weigh, typer.Option(help="How much a training row counts: all alike, or as its label is its own.")
    ] = Weigh.ALIKE,
    time_of_day: Annotated[
        bool,
        typer.Option(
            "--time-of-day",
            help="Take out of the baselines' features what the hour explains, to compare. No model is written.",
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Most passes of a network over its rows.")] = 12,
    loss: Annotated[Loss, typer.Option(help="What networks are trained on.")] = Loss.CROSS_ENTROPY,
    label_smoothing: Annotated[
        float, typer.Option(min=0, help="Networks: share of a label that goes to all classes alike.")
    ] = 0.0,
    huber: Annotated[
        float, typer.Option(min=0, help="Networks: weight of the Huber loss on the winsorised return.")
    ] = 0.0,
    level_dropout: Annotated[
        float, typer.Option(min=0, help="Networks: chance of a book level to be hidden from a sample.")
    ] = 0.0,
    time_jitter: Annotated[
        int, typer.Option(min=0, help="Networks: a sample's window may end up to so many buckets earlier.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed and rows give the same model.")] = 7,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Against the traditions, with training.html. Default: with several models.",
        ),
    ] = None,
    shuffle_labels: Annotated[
        bool,
        typer.Option("--shuffle-labels", help="The chance check: labels dealt anew. No model is written."),
    ] = False,
) -> None:
    """Train the ladder of models on training_set, compare them walk-forward, and export ONNX with model cards."""
    # only here: it takes seconds, and every other command would wait for it
    from python_udfs.training.calibrate import Method
    from python_udfs.training.context import read_context
    from python_udfs.training.ladder import climb
    from python_udfs.training.report import write_training_report
    from python_udfs.training.train import Market, Options, classes_of, cut_folds, fit_model, save, walk

    if name and (len(model or []) != 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)):
        raise UserError("--name: letters, digits, `_`, `-` and `.`, and with one --model only")
    network = NetworkOptions(
        epochs=epochs,
        loss=loss,
        label_smoothing=label_smoothing,
        huber=huber,
        level_dropout=level_dropout,
        time_jitter=time_jitter,
    )
    network.check()
    say = _progress()
    data = read_dataset(
        label, [part.strip() for part in features.split(",") if part.strip()], feature_version
    )
    if weigh is Weigh.UNIQUENESS:
        data = data.weighted()
    kinds, market = _choose(list(dict.fromkeys(model)) if model else None, Market(data), say)
    o = Options(
        folds=folds,
        first_train_share=first_train_share,
        embargo_s=embargo,
        rolling_share=first_train_share if scheme is Scheme.ROLLING else None,
        calibrate=None if calibrate is Calibrate.NONE else Method(calibrate.value),
        tune=tune,
        time_of_day=time_of_day,
        network=network,
        seed=seed,
        feature_vector_version=feature_version,
    )
    folders = {kind: settings().data_dir / "models" / (name or kind.value) for kind in kinds}
    # a file or a pipe has no width of its own
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if shuffle_labels or time_of_day or (len(kinds) > 1 if compare is None else compare):
        ladder = climb(
            market, kinds, o, context=read_context(data), folders=folders, shuffled=shuffle_labels, say=say
        )
        cards = ladder.cards
        out.print(_comparison(ladder))
        for sentence in _sentences(ladder):
            out.print(sentence, markup=False, soft_wrap=True)
        kind = "-shuffled" if shuffle_labels else "-time-of-day" if time_of_day else ""
        page = settings().data_dir / f"training{kind}.html"
        write_training_report(ladder, page)
        out.print(f"the report is {page}", markup=False, soft_wrap=True)
    else:
        steps = cut_folds(data, o)
        said = walk(kinds, market, steps, classes_of(data), o=o, say=say)
        cards = []
        for kind in kinds:
            fitted = fit_model(kind, market, np.arange(len(data.as_of)), o)
            cards.append(save(folders[kind], fitted, market=market, out=said[kind], steps=steps, o=o))
        out.print(_walk_forward(cards))
    for card in cards:
        out.print(
            f"{card.name} {card.version}: refitted on {card.training_rows:,} rows of "
            f"{len(card.instruments)} instruments, ONNX within {card.parity_max_abs_diff:.1e} of the trained "
            f"model on {card.parity_rows} rows, in {settings().data_dir / 'models' / card.name}",
            markup=False,
            soft_wrap=True,
        )


def _progress() -> Callable[[str], None]:
    """Prints what begins now, with the seconds since the start, where nobody parses it."""
    err, began = Console(stderr=True, highlight=False), time.monotonic()
    return lambda what: err.print(f"[dim]{time.monotonic() - began:5.0f} s[/] {what}", soft_wrap=True)


def _choose(
    asked: list[ModelType] | None, market: Market, say: Callable[[str], None]
) -> tuple[list[ModelType], Market]:
    """The models to train and the rows they need. Nothing asked: all that can be trained here, and why no more."""
    from python_udfs.training.sequences import read_sequences
    from python_udfs.training.train import BASELINES, Market

    if asked is not None and not any(kind.is_network for kind in asked):
        return asked, market
    if find_spec("torch") is None:
        reason = "the networks need PyTorch: run `make torch`"
    else:
        try:
            return asked or list(ModelType), Market(market.data, read_sequences(market.data.label.column))
        except UserError as e:
            reason = str(e)
    if asked is not None:
        raise UserError(reason)
    say(f"only the baselines are trained: {reason}")
    return list(BASELINES), market


def _comparison(ladder: Ladder) -> Table:
    from python_udfs.training.report import HEAD, cells, title

    table = Table(
        title=title(ladder),
        caption="rank IC with its 95 % block-bootstrap interval, and the folds' mean; IC: Pearson. Loss / prior: "
        "log loss over that of the training rows' class shares. Each rule trades its strongest fifth until the "
        "label's end; Sharpe, yearly, and drawdown after fees and half the spread. Capacity: of one trade, in quote "
        "currency. Latency: ORT, batch 1",
    )
    for i, heading in enumerate(HEAD):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for line in ladder.lines:
        table.add_row(*cells(line), style="bold" if line is ladder.best else "")
    return table


def _sentences(ladder: Ladder) -> list[str]:
    from python_udfs.training.report import verdicts

    lines = [f"{line.name}: {line.note}" for line in ladder.lines if line.note]
    lines += [
        f"{line.name}, {name}: {v.size / 1e3:,.0f} kB, rank IC lost {v.ic_loss:+.4f}, "
        f"probabilities within {v.max_abs_diff:.1e}"
        for line in ladder.lines
        for name, v in line.smaller.items()
        if v.ic_loss is not None
    ]
    lines += [f"{line.name}: not adopted: {'; '.join(line.reasons)}" for line in ladder.lines if line.reasons]
    return [*lines, *verdicts(ladder)]


def _walk_forward(cards: list[Card]) -> Table:
    first = cards[0]
    table = Table(
        title=f"Walk-forward, out of sample: {first.label} ({first.horizon}), "
        f"{first.training_first_as_of:%Y-%m-%d %H:%M} to {first.training_last_as_of:%Y-%m-%d %H:%M} UTC",
        caption="prior: always saying the class shares of the training rows. "
        f"IC: rank correlation of P(up) - P(down) with {first.label_return}. AUC: up against the rest",
    )
    for heading in ("model", "fold", "train", "purged", "test", "test from"):
        table.add_column(heading, justify="left" if heading in ("model", "test from") else "right")
    for heading in ("log loss", "prior", "accuracy", "balanced", "Brier", "AUC", "IC"):
        table.add_column(heading, justify="right")
    for card in cards:
        for fold in card.folds:
            table.add_row(
                card.type,
                str(fold.fold),
                f"{fold.train_rows:,}",
                f"{fold.purged_rows:,}",
                f"{fold.test_rows:,}",
                f"{fold.test_first_as_of:%m-%d %H:%M:%S}",
                *_numbers(fold.metrics),
            )
        table.add_row(
            card.type,
            "all",
            "",
            "",
            f"{card.pooled.rows:,}",
            "",
            *_numbers(card.pooled),
            style="bold",
            end_section=True,
        )
    return table


def _numbers(m: Metrics) -> list[str]:
    values = [m.log_loss, m.prior_log_loss, m.accuracy, m.balanced_accuracy, m.brier, m.auc.get("1")]
    return ["-" if value is None else f"{value:.3f}" for value in values] + [
        "-" if m.ic is None else f"{m.ic:+.3f}"
    ]
