"""What is looked at: the newest rows of a relation, and its columns beside those that were promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pandas as pd
from clickhouse_driver import Client

from python_udfs import db
from python_udfs.quality.contract import Contract, Limits
from python_udfs.settings import settings

# Columns that a batch has beside the relation's.
LAG: Final = "(seconds behind)"
FINITE: Final = "(every number is finite)"


@dataclass(frozen=True, slots=True)
class Batch:
    """rows: the newest rows, the promised columns that are there, LAG, FINITE, and `(check i)` per expression: 1, 0 or
    NULL. columns: one row per promised or found column: name, type, promised. checks: (check i) -> expression.
    """

    contract: Contract
    limits: Limits
    rows: pd.DataFrame
    columns: pd.DataFrame
    checks: dict[str, str]


def read(c: Client, contract: Contract, limits: Limits) -> Batch:
    """A relation as it is now. One that is not there has no rows and no columns."""
    database = settings().database(contract.layer)
    found = dict(
        c.execute(
            "select name, type from system.columns where database = %(d)s and table = %(t)s order by position",
            {"d": database, "t": contract.relation},
        )
    )
    names = list(dict.fromkeys([*contract.columns, *(found if contract.layer == "features" else [])]))
    columns = pd.DataFrame(
        {
            "name": names,
            "type": [found.get(n, "(not there)") for n in names],
            "promised": [contract.columns.get(n, "(not promised)") for n in names],
        }
    )
    there = [n for n in contract.columns if n in found]
    if not there or contract.ordered_by not in there:
        return Batch(contract, limits, pd.DataFrame({n: [] for n in there}), columns, {})
    selected = {n: _plain(n, found[n]) for n in there}
    if floats := [db.names([n]) for n in there if "Float" in found[n] and "Array" not in found[n]]:
        tests = " and ".join(f"ifNull(isFinite({n}), 1)" for n in floats)
        selected[FINITE] = f"toUInt8({tests})"
    checks = {f"(check {i})": e for i, e in enumerate(contract.expressions, 1)}
    if len(there) == len(contract.columns):  # an expression may name any of them
        selected |= {name: f"toUInt8(({e}) != 0)" for name, e in checks.items()}
    if limits.behind:
        layer, table, column = limits.behind
        newest = f"(select max({db.names([column])}) from {db.names([settings().database(layer)])}.{table})"
        selected[LAG] = f"dateDiff('millisecond', {contract.ordered_by}, {newest}) / 1000"
    # names of the batch are given here: aliases would shadow columns in the expressions
    data = c.execute(
        f"select {', '.join(selected.values())} from {db.names([database])}.{db.names([contract.relation])} "
        f"order by {', '.join(f'{db.names([n])} desc' for n in [contract.ordered_by, *contract.grain] if n in found)} "
        f"limit {limits.newest_rows}",
        columnar=True,
    )
    rows = pd.DataFrame(dict(zip(selected, data or [[]] * len(selected), strict=True)))
    return Batch(contract, limits, rows, columns, {n: e for n, e in checks.items() if n in selected})


def _plain(name: str, kind: str) -> str:
    """SQL: a column as pandas can hold it."""
    quoted = db.names([name])
    if "Decimal" in kind:
        return f"toFloat64({quoted})"
    return f"toString({quoted})" if "UUID" in kind or "Enum" in kind else quoted
