"""Whether the newest quality run lets a model be promoted."""

from __future__ import annotations

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs.scorer.registry import serving


def objections(c: Client) -> list[str]:
    """What the newest run of `marketprism quality` found wrong. Empty: nothing, or it has never run."""
    try:
        found = c.execute(
            f"select success, failed, finished_at from {serving('quality_runs')} "
            "order by finished_at desc, run_id desc limit 1"
        )
    except driver_errors.ServerException as e:
        if e.code == driver_errors.ErrorCodes.UNKNOWN_TABLE:
            return []  # a store from before this table: it has never run
        raise
    if not found or found[0][0]:
        return []
    [(_, failed, at)] = found
    most = 10
    more = [f"and {len(failed) - most} more"] if len(failed) > most else []
    return [f"the quality run of {at:%Y-%m-%d %H:%M} UTC failed: {failed[0]}", *failed[1:most], *more]
