"""Reads the relations at each scrape, one query each, in bounded time. What is not there yet is said, not raised."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.exporter.queries import SOURCES, Source

PREFIX: Final = "marketprism_"
_ABSENT: Final = (driver_errors.ErrorCodes.UNKNOWN_TABLE, driver_errors.ErrorCodes.UNKNOWN_DATABASE)
_log = logging.getLogger(__name__)


class StoreCollector(Collector):
    """All gauges of the store.

    Args:
        budget_s: time for all queries of a scrape together, in seconds; what comes too late is left out and said.
    """

    def __init__(self, budget_s: float = 8, sources: Sequence[Source] = SOURCES) -> None:
        self._budget_s, self._sources = budget_s, sources

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily(PREFIX + "up", "The store answers.")
        missing = GaugeMetricFamily(
            PREFIX + "relation_missing", "A relation that is exported is not there yet.", labels=("relation",)
        )
        unreadable = GaugeMetricFamily(
            PREFIX + "relation_unreadable", "A relation could not be read in time.", labels=("relation",)
        )
        took = GaugeMetricFamily(
            PREFIX + "relation_read_seconds", "How long reading it took.", labels=("relation",)
        )
        deadline = time.monotonic() + self._budget_s
        try:
            with db.connect(max_threads=2, max_memory_usage=2_000_000_000, join_use_nulls=1) as c:
                for source in self._sources:
                    began = time.monotonic()
                    absent = failed = False
                    try:
                        yield from _families(c, source, deadline - began)
                    except driver_errors.ServerException as e:
                        absent = e.code in _ABSENT
                        failed = not absent
                        if failed:
                            _log.warning("%s: %s", source.relation, str(e.message).split("Stack trace")[0])
                    except TimeoutError:
                        failed = True
                    missing.add_metric((source.relation,), absent)
                    unreadable.add_metric((source.relation,), failed)
                    took.add_metric((source.relation,), time.monotonic() - began)
            up.add_metric((), 1)
        except UserError as e:
            _log.warning("%s", e)
            up.add_metric((), 0)
        yield from (up, missing, unreadable, took)


def _families(c: Client, source: Source, left_s: float) -> list[GaugeMetricFamily]:
    """The gauges of one relation.

    Raises:
        TimeoutError: no time is left.
    """
    if left_s <= 0:
        raise TimeoutError
    c.settings["max_execution_time"] = left_s
    found = db.rows(c, source.query())
    families = []
    for gauge in source.gauges:
        family = GaugeMetricFamily(PREFIX + gauge.name, gauge.help, labels=gauge.labels)
        for row in found:
            if row[gauge.value] is not None:
                family.add_metric([str(row[label]) for label in gauge.labels], float(row[gauge.value]))
        families.append(family)
    return families
