"""One story for every market: built whole, cut and shuffled; grown; built anew. Each module tells it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from python_udfs.settings import REPOSITORY
from tests.leakage import market
from tests.leakage.build import Build, building
from tests.leakage.checks import Comparison, compare
from tests.leakage.variants import Treatment, Variant, add_instruments, grow, make, moments, set_defaults

CLOCK = ("stg_trades", "stg_orderbooks", "stg_watermarks", "bucket_config", "bucket_tapes")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What goes with symbol FULL in the raw tables: rows of bucket_defaults, contract values by market."""

    defaults: Sequence[tuple[object, ...]]
    contract_values: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Story:
    """A build, and the variants in its store."""

    build: Build
    variants: list[Variant]

    def of(self, *treatments: Treatment) -> list[Variant]:
        return [v for v in self.variants if v.treatment in treatments]


def generated() -> Loaded:
    """Puts the generated market into the current store."""
    market.load()
    return Loaded(
        [(*of, "*", *row) for of, row in market.MARKETS.items()],
        {(x, m): 100 if m == "inverse" else 1 for x, m in market.MARKETS},
    )


def prepared(build: Build, loaded: Loaded, only: Sequence[str] = ()) -> Story:
    """Seeds, the clock of FULL, the moments that it has, the variants' raw rows: ready for a full build.

    only: of the moments T, these.
    """
    build.dbt("seed")
    set_defaults(build.features, loaded.defaults)
    build.dbt("run", "--select", *CLOCK)
    at = {name: t for name, t in moments(build.features, seed=5).items() if not only or name in only}
    variants = make(at, ["cut", "shuffle", "late"])
    symbols = [market.FULL, *(v.symbol for v in variants)]
    add_instruments(build.features, loaded.contract_values, symbols)
    return Story(build, variants)


@pytest.fixture(scope="module")
def built(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Everything built at once: FULL, cut, shuffled, and (cut as well) those that are to grow."""
    build = building(REPOSITORY, tmp_path_factory.mktemp("dbt"))
    story = prepared(build, loaded)
    build.dbt("run", "--full-refresh")
    return story


@pytest.fixture(scope="module")
def at_once(built: Story) -> Comparison:
    """The first build, compared."""
    return compare(built.build, built.of("cut", "shuffle"))


@pytest.fixture(scope="module")
def grown(built: Story, at_once: Comparison) -> Comparison:
    """After the late rows came and an ordinary run took them in."""
    grow(built.variants)
    built.build.dbt("run")
    return compare(built.build, built.of("late", "resumed"))


@pytest.fixture(scope="module")
def rebuilt(built: Story, grown: Comparison) -> Comparison:
    """After everything was built anew from all rows."""
    built.build.dbt("run", "--full-refresh")
    return compare(built.build, built.variants)
