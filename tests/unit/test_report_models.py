"""The walk-forward section from model folders, without a database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from python_udfs.jobs.report.models import models_section, read_models
from python_udfs.scorer.card import CARD_FILE, EVALUATION_FILE, Card, Column, FoldReport
from python_udfs.training.metrics import direction, evaluate

CLASSES = [-1, 0, 1]
HOSTILE = "<b>'\"&"
BEGIN = datetime(2026, 1, 5, 23, 30, tzinfo=UTC)


def _write(
    folder: Path, name: str, *, skill: float = 1.0, label: str = "label_cls_30s", age: int = 0
) -> None:
    """A model folder: 3 folds of 200 rows, a score of that skill (below zero: wrong on purpose)."""
    r = np.random.default_rng(len(name))
    labels = r.integers(-1, 2, 600).astype(np.int8)
    returns = labels * 1e-4 + r.normal(0, 1e-4, 600)
    raw = np.exp(skill * (labels[:, None] == CLASSES) + r.normal(0, 0.5, (600, 3)))
    probabilities, prior = raw / raw.sum(axis=1, keepdims=True), np.full((600, 3), 1 / 3)
    folds = []
    for i in range(3):
        part = slice(200 * i, 200 * (i + 1))
        folds.append(
            FoldReport(
                fold=i + 1,
                train_rows=300 + 200 * i,
                purged_rows=4,
                test_rows=200,
                test_first_as_of=BEGIN + timedelta(minutes=20 * i),
                test_last_as_of=BEGIN + timedelta(minutes=20 * i + 19),
                metrics=evaluate(probabilities[part], prior[part], labels[part], returns[part], CLASSES),
            )
        )
    card = Card.unjudged(
        b"",
        [Column(name="ofi", type="Nullable(Float64)")],
        name=name,
        classes=CLASSES,
        label=label,
        label_return=label.replace("cls", "ret"),
        horizon="30 s",
        training_rows=900,
        training_first_as_of=BEGIN - timedelta(hours=1),
        training_last_as_of=BEGIN + timedelta(hours=1),
        pooled=evaluate(probabilities, prior, labels, returns, CLASSES),
        folds=folds,
        created_at=BEGIN - timedelta(days=age),
    )
    place = folder / f"{age}"
    place.mkdir()
    (place / CARD_FILE).write_text(card.model_dump_json())
    rows = {"score": direction(probabilities, CLASSES).tolist(), "label_return": returns.tolist()}
    (place / EVALUATION_FILE).write_text(json.dumps({"rows": rows, "more": "of no interest"}))


def test_without_a_model_it_says_what_to_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        section = models_section(folder)
        assert [f.title for f in section.figures] == ["No model was trained yet"]
        assert "<code>make train</code>" in section.figures[0].body


def test_models_against_the_base_rate_by_fold_by_score_and_by_class(tmp_path: Path) -> None:
    _write(tmp_path, "good", skill=1.0)
    _write(tmp_path, "bad", skill=-1.0, age=1)
    titles = [f.title for f in models_section(tmp_path).figures]
    assert titles[0].startswith("The best model, good, has a log loss ")
    assert titles[0].endswith(" % below the base rate")
    assert titles[1] == "Folds with a positive IC: good 3 of 3, bad 0 of 3"
    assert titles[2] == "Folds that beat the base rate: good 3 of 3, bad 0 of 3"
    assert titles[3].startswith("Return that followed the highest tenth of scores less the lowest: good ")
    assert ", bad −" in titles[3]
    assert [t.split(":")[0] for t in titles[4:]] == ["good", "bad"]


def test_a_model_that_learned_nothing_is_not_praised(tmp_path: Path) -> None:
    _write(tmp_path, "bad", skill=-1.0)
    assert models_section(tmp_path).figures[0].title.endswith(" above the base rate")


def test_every_chart_is_well_formed_and_named(tmp_path: Path) -> None:
    _write(tmp_path, HOSTILE, label="label_cls_3")
    bodies = [f.body for f in models_section(tmp_path).figures]
    assert not any("<b>" in body for body in bodies)
    for body in bodies:
        root = ElementTree.fromstring(f"<div>{body}</div>")
        for drawn in root.iter("svg"):
            assert drawn.attrib["role"] == "img"
            assert len(drawn.attrib["aria-label"]) > 20
    assert sum(body.count("<svg") for body in bodies) == 6
    assert "mean return, bps per second" in bodies[3]
    # the folds lie on two days: their names say so
    assert "01-05 23:30" in bodies[1]
    assert "01-06 00:10" in bodies[1]


def test_only_the_newest_models_are_shown(tmp_path: Path) -> None:
    for age in range(6):
        _write(tmp_path, f"m{age}", age=age)
    models, broken = read_models(tmp_path)
    assert [m.card.name for m in models] == ["m0", "m1", "m2", "m3"]
    assert not broken


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (CARD_FILE, "{}", "[name]: Field required"),
        (CARD_FILE, "{", "[]: Invalid JSON"),
        (EVALUATION_FILE, '{"rows": {"score": []}}', "[rows.label_return]: Field required"),
        (EVALUATION_FILE, None, "evaluation.json is missing"),
    ],
)
def test_a_model_that_cannot_be_read_is_named_beside_the_others(
    tmp_path: Path, file: str, content: str | None, says: str
) -> None:
    _write(tmp_path, "good")
    _write(tmp_path, "broken", age=1)
    place = tmp_path / "1" / file
    if content is None:
        place.unlink()
    else:
        place.write_text(content)
    figures = models_section(tmp_path).figures
    assert figures[0].title == "A model cannot be read"
    assert says in figures[0].body
    assert figures[1].title.startswith("The best model, good")
