"""The migrations as a cluster runs them. The files stay as they are: a cluster is a setting, never an edit.

A table whose rows are an instrument's (its sorting key starts with exchange, market_type, symbol) lies in shards:
`trades_local` on every node, replicated within its shard, and `trades`, a Distributed table over them, for everyone
to use. Every other table (loads, watermarks, models, deployments) is small, and replicated across all shards.
The cluster's `remote_servers` need `internal_replication`, its nodes the macros `shard` and `replica`, and Keeper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from clickhouse_migrations.migration import Migration
from clickhouse_migrations.migrator import split_statement_tokens

LOCAL: Final = "_local"
SHARDING_KEY: Final = "cityHash64(exchange, market_type, symbol)"
SHARDED: Final = "('/clickhouse/tables/{shard}/{database}/{table}', '{replica}'"
EVERYWHERE: Final = "('/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}'"
VERSIONS_ENGINE: Final = f"ReplicatedMergeTree{EVERYWHERE})"


def on_cluster(migrations: Iterable[Migration], cluster: str) -> list[Migration]:
    """The migrations of one database, in order, with each script as the cluster runs it and the md5 of the file."""
    sharded: set[str] = set()
    rendered = []
    for migration in migrations:
        statements = [
            statement
            for tokens in split_statement_tokens(migration.script)
            for statement in _rendered(
                "".join(t.text for t in tokens if "comment" not in t.kind).strip(), cluster, sharded
            )
        ]
        rendered.append(migration._replace(script=";\n".join(statements)))
    return rendered


def _rendered(statement: str, cluster: str, sharded: set[str]) -> list[str]:
    on = f'ON CLUSTER "{cluster}"'
    if found := re.match(r"CREATE TABLE IF NOT EXISTS (\w+)", statement):
        table = found[1]
        is_sharded = bool(re.search(r"\nORDER BY \(exchange, market_type, symbol", statement))
        if is_sharded:
            sharded.add(table)
        name, place = (table + LOCAL, SHARDED) if is_sharded else (table, EVERYWHERE)
        created = re.sub(r"(?<=^CREATE TABLE IF NOT EXISTS )\w+", f"{name} {on}", statement)
        created = re.sub(
            r"\nENGINE = (\w*MergeTree)(?:\((\w*)\))?",
            lambda m: f"\nENGINE = Replicated{m[1]}{place}{', ' + m[2] if m[2] else ''})",
            created,
        ).replace("non_replicated_deduplication_window", "replicated_deduplication_window")
        over = (
            f"CREATE TABLE IF NOT EXISTS {table} {on} AS {name}\n"
            f"ENGINE = Distributed('{cluster}', currentDatabase(), '{name}', {SHARDING_KEY})"
        )
        return [created, over] if is_sharded else [created]
    if found := re.match(r"ALTER TABLE (\w+)", statement):
        actions = re.split(r",\n\s*(?=ADD |MODIFY |DROP |RENAME )", statement[found.end() :].strip())
        changes = {found[1]: actions}
        if found[1] in sharded:
            # a Distributed table has the columns, and no index of its own
            columns = [action for action in actions if re.match(r"\w+ COLUMN ", action)]
            changes = {found[1] + LOCAL: actions, found[1]: columns}
        return [f"ALTER TABLE {t} {on}\n    " + ",\n    ".join(said) for t, said in changes.items() if said]
    if found := re.match(r"CREATE (ROLE|SETTINGS PROFILE) IF NOT EXISTS \S+", statement):
        return [statement.replace(found[0], f"{found[0]} {on}", 1)]
    if found := re.match(r"GRANT|REVOKE", statement):
        return [statement.replace(found[0], f"{found[0]} {on}", 1)]
    raise ValueError(f"a statement that a cluster has no form of: {statement[:80]}")
