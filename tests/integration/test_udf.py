"""Functions called from SQL: on the server's own process pool."""

from __future__ import annotations

from python_udfs import db
from python_udfs.functions.registry import functions
from python_udfs.settings import Settings


def test_the_server_knows_every_function(server: Settings) -> None:
    with db.connect() as c:
        known = c.execute("select name from system.functions where origin = 'ExecutableUserDefined'")
    assert {name for (name,) in known} >= set(functions())


def test_every_function_answers_nothing_with_a_reason_or_a_null_and_never_fails(server: Settings) -> None:
    empty = {"Float64": "nan", "Int64": "toInt64(0)", "String": "''"}
    with db.connect() as c:
        for f in functions().values():
            arguments = [empty.get(t, f"[]::{t}") for t in f.arguments.values()]
            [(row,)] = c.execute(f"select {f.name}({', '.join(arguments)})")
            assert len(row) == len(f.returns) + 1
            assert (
                all(
                    v == [] if t.startswith("Array") else True
                    for v, t in zip(row, f.returns.values(), strict=False)
                )
                or row[-1] is None
            )
