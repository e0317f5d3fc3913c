"""Roles and the limits of an analyst's query. They are written once, in `migrations/access/`.

A server gets them as SQL from `marketprism migrate`. The local server has no storage that `CREATE ROLE` could write to:
its users.xml gets a user per role, of the role's name and with the same grants and limits. They have no password, as
`default` has none: on a laptop a role keeps a program from mistakes; a shared machine needs a server of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from clickhouse_driver import Client
from clickhouse_migrations.substitution import substitute

from python_udfs.settings import REPOSITORY

FOLDER: Final = REPOSITORY / "migrations" / "access"
ROLES: Final = ("reader", "scorer", "ingester", "monitor", "admin")


def role(name: str, prefix: str) -> str:
    """The full name of one of `ROLES`."""
    return f"{prefix}marketprism_{name}"


def cannot_manage(c: Client) -> str | None:
    """Why the roles cannot be made by this user on this server. None: they can."""
    if not c.execute("select count() from system.user_directories where type != 'users_xml'")[0][0]:
        return "this server keeps its users in files"
    if not c.execute("check grant create role, create settings profile, role admin on *.*")[0][0]:
        return "this user may not make roles: run it once as one with access management"
    return None


def users_xml(prefix: str) -> tuple[str, str]:
    """The `<profiles>` and the `<users>` of the local server's users.xml, without these tags."""
    profiles, users = "", ""
    for name in ROLES:
        full = role(name, prefix)
        grants = "".join(f"<query>{escape(grant)}</query>" for grant in _grants(full, prefix))
        limits = _limits(full, prefix)
        profiles += (
            f"<{full}><profile>default</profile>"
            + "".join(f"<{setting}>{value}</{setting}>" for setting, (value, _) in limits.items())
            + "<constraints>"
            + "".join(
                f"<{setting}><readonly/></{setting}>" for setting, (_, fixed) in limits.items() if fixed
            )
            + f"</constraints></{full}>"
        )
        users += (
            f"<{full}><no_password/><networks><ip>127.0.0.1</ip></networks><profile>{full}</profile>"
            f"<quota>default</quota><grants>{grants}</grants></{full}>"
        )
    return profiles, users


def _statements(prefix: str) -> Iterator[str]:
    """Every statement of the migrations, on one line each, without comments."""
    for file in sorted(FOLDER.glob("*.sql")):
        text = re.sub(r"--.*", "", substitute(file.read_text(), {"PREFIX": prefix}, str(file)))
        yield from (" ".join(statement.split()) for statement in text.split(";") if statement.strip())


def _grants(full: str, prefix: str) -> list[str]:
    """What is granted to and revoked from a role, in order."""
    ends = (f" TO {full}", f" FROM {full}")
    return [
        s.removesuffix(ends[0]).removesuffix(ends[1])
        for s in _statements(prefix)
        if s.startswith(("GRANT ", "REVOKE ")) and s.endswith(ends)
    ]


def _limits(full: str, prefix: str) -> dict[str, tuple[str, bool]]:
    """A role's settings: value, and whether a query may not change it."""
    for s in _statements(prefix):
        if s.startswith("CREATE SETTINGS PROFILE ") and s.endswith(f" TO {full}"):
            found = re.findall(r"(\w+) = (\d+)( READONLY)?", s)
            return {name: (value, bool(fixed)) for name, value, fixed in found}
    return {}
