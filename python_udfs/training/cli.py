"""`marketprism train`."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, Metrics, ModelType
from python_udfs.settings import settings
from python_udfs.training.dataset import DEFAULT_FEATURES, read_dataset


def train_command(
    *,
    model: Annotated[list[ModelType], typer.Option("--model", help="Which baseline; repeat for several.")] = [
        ModelType.LOGISTIC,
        ModelType.LIGHTGBM,
    ],
    name: Annotated[str, typer.Option(help="Name of the model's folder. Default: the baseline's.")] = "",
    label: Annotated[str, typer.Option(help="The class column of training_set.")] = "label_cls_3",
    features: Annotated[str, typer.Option(help="Columns of feature_vector, by commas.")] = ",".join(
        DEFAULT_FEATURES
    ),
    feature_version: Annotated[int, typer.Option(min=1, help="Version of feature_vector.")] = 1,
    folds: Annotated[int, typer.Option(min=1, help="Test periods of the walk-forward.")] = 5,
    first_train_share: Annotated[
        float, typer.Option(help="Share of the rows before the first of them.")
    ] = 0.4,
    embargo: Annotated[
        float, typer.Option(min=0, help="Seconds a label must have been known to train.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed and rows give the same model.")] = 7,
) -> None:
    """Train the baselines on training_set, evaluate them walk-forward, and export ONNX with a model card."""
    # only here: it takes seconds, and every other command would wait for it
    from python_udfs.training.train import train

    if name and (len(model) > 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)):
        raise UserError("--name: letters, digits, `_`, `-` and `.`, and with one --model only")
    data = read_dataset(
        label, [part.strip() for part in features.split(",") if part.strip()], feature_version
    )
    cards = [
        train(
            data,
            chosen,
            settings().data_dir / "models" / (name or chosen),
            folds=folds,
            first_train_share=first_train_share,
            embargo_s=embargo,
            seed=seed,
            feature_vector_version=feature_version,
        )
        for chosen in model
    ]
    # a file or a pipe has no width of its own
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    out.print(_table(cards))
    for card in cards:
        out.print(
            f"{card.name} {card.version}: refitted on {card.training_rows:,} rows of "
            f"{len(card.instruments)} instruments, ONNX within {card.parity_max_abs_diff:.1e} of the trained "
            f"model on {card.parity_rows} rows, in {settings().data_dir / 'models' / card.name}",
            markup=False,
            soft_wrap=True,
        )


def _table(cards: list[Card]) -> Table:
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
