"""Whether a new model is worth its price against the one it would replace.

Source 004, section 2.1, asks for: score = gain - 0.5 latency - 0.3 complexity - 0.2 interpretability loss > 0.15, latency
within its budget and explanations that cover 60 %. Its costs are bare ratios, of which a hundredfold number of
parameters alone would be 99: here each is put on a scale from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from python_udfs.errors import UserError

LEAST_SCORE: Final = 0.15
LEAST_COVERAGE: Final = 0.6
LATENCY_WEIGHT: Final = 0.5
COMPLEXITY_WEIGHT: Final = 0.3
INTERPRETABILITY_WEIGHT: Final = 0.2
QUALITY_FLOOR: Final = 0.01
DECADES: Final = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of a model. `quality`: out-of-sample IC or Sharpe, the same for both that are compared."""

    quality: float | None
    latency_ms: float | None  # p99 from request to signal
    parameters: int
    coverage: float | None  # share of attribution that its explanations cover, see `explain.coverage`


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every term of the decision; `reasons` says why not, empty when the model is adopted."""

    adopt: bool
    score: float | None
    gain: float | None  # relative
    latency_cost: float | None  # each cost in [0, 1]
    complexity_cost: float
    interpretability_loss: float | None
    reasons: tuple[str, ...]


def decide(
    new: Candidate, old: Candidate, *, latency_budget_ms: float, quality_floor: float = QUALITY_FLOOR
) -> Verdict:
    """Holds a candidate against the model in use.

    - gain: (new - old) / max(|old|, `quality_floor`): a baseline near zero must not make any difference infinite;
    - latency cost: the share of the budget that it takes beyond the old model's latency;
    - complexity cost: how many of six powers of ten its number of parameters is above the old one's;
    - interpretability loss: how much of the attribution its explanations cover less.

    Costs below zero count as zero: being faster or smaller buys no quality. What is unknown (None or not
    finite) is a reason against.

    Raises:
        UserError: a budget, floor, number of parameters or coverage that cannot be.
    """
    for name, model in (("new", new), ("old", old)):
        if model.parameters < 0 or (model.coverage is not None and not -1e-9 <= model.coverage <= 1 + 1e-9):
            raise UserError(f"the {name} model needs parameters >= 0 and a coverage between 0 and 1")
    if not (latency_budget_ms > 0 and quality_floor > 0):
        raise UserError("the latency budget and the quality floor must be above 0")

    gain = _of(new.quality, old.quality, lambda a, b: (a - b) / max(abs(b), quality_floor))
    latency_cost = _of(new.latency_ms, old.latency_ms, lambda a, b: _share((a - b) / latency_budget_ms))
    complexity_cost = _share(math.log10(max(new.parameters, 1) / max(old.parameters, 1)) / DECADES)
    loss = _of(new.coverage, old.coverage, lambda a, b: _share(b - a))
    score = None
    if gain is not None and latency_cost is not None and loss is not None:
        score = (
            gain
            - LATENCY_WEIGHT * latency_cost
            - COMPLEXITY_WEIGHT * complexity_cost
            - INTERPRETABILITY_WEIGHT * loss
        )

    reasons = []
    if gain is None:
        reasons.append("the quality of one of the two is unknown")
    if latency_cost is None:
        reasons.append("the latency of one of the two is unknown")
    elif new.latency_ms is not None and not new.latency_ms < latency_budget_ms:
        reasons.append(f"latency {new.latency_ms:g} ms is not under the budget of {latency_budget_ms:g} ms")
    if loss is None:
        reasons.append("the coverage of one of the two is unknown")
    elif new.coverage is not None and new.coverage < LEAST_COVERAGE:
        reasons.append(f"explanations cover {new.coverage:.1%} of attribution, below {LEAST_COVERAGE:.0%}")
    if score is not None and not score > LEAST_SCORE:
        reasons.append(f"score {score:.3f} is not above {LEAST_SCORE}")
    return Verdict(not reasons, score, gain, latency_cost, complexity_cost, loss, tuple(reasons))


def _of(new: float | None, old: float | None, formula: Callable[[float, float], float]) -> float | None:
    if new is None or old is None or not (math.isfinite(new) and math.isfinite(old)):
        return None
    return formula(new, old)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
