"""Checksums of rows: equal for the same rows whatever their order, parts and merges."""

from __future__ import annotations

from typing import Final

from clickhouse_driver import Client

from python_udfs import db

# Engines whose merges change what is stored, but not what FINAL reads.
_MERGING: Final = ("Replacing", "Aggregating", "Summing", "Collapsing", "Coalescing")

Sums = dict[str, tuple[int, int]]  # group -> rows, checksum


def row_hash(columns: str = "*") -> str:
    """SQL: 64 bits over every byte of the row, NULLs included."""
    return f"sipHash64(formatRow('RowBinary', {columns}))"


def final(engine: str) -> str:
    """`final` where the engine's merges would otherwise show."""
    return "final" if any(name in engine for name in _MERGING) else ""


def checksums(
    c: Client, table: str, by: str, *, columns: str = "*", where: str = "1", engine: str = ""
) -> Sums:
    """Rows and checksum for each value of `by`, as text.

    Args:
        table: full name. by: SQL expression. columns, where: SQL. engine: the table's, to read it as merged.
    """
    found = c.execute(
        f"select toString({by}), count(), sum({row_hash(columns)}) from {table} {final(engine)} "
        f"where {where} group by {by}"
    )
    return {str(group): (int(n), int(total)) for group, n, total in found}


def full(database: str, table: str) -> str:
    """A quoted full name."""
    return f"{db.names([database])}.{db.names([table])}"
