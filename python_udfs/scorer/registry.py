"""Registered models: their files and cards in ClickHouse, so that any host can restore them.

Files go to `model_files` by their sha256; then one row in `models` completes the registration. Both tables are only
added to, except that `prune` deletes files that no model needs any more (`python_udfs.scorer.deployment`).
"""

from __future__ import annotations

import getpass
import hashlib
import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from clickhouse_driver import Client
from pydantic import ValidationError

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import CARD_FILE, ONNX_FILE, Card, load_model
from python_udfs.settings import settings

# What may differ between two trainings of the same model.
_CIRCUMSTANCES: Final = {"created_at", "git_revision", "libraries"}
_COLUMNS: Final = "model_name, model_version, available, card, files, who, at"


class Reference(NamedTuple):
    """A registered model and the public relation that it reads, with its version (`feature_vector_v2`)."""

    name: str
    version: str
    table: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class Registered(NamedTuple):
    """The last row of a model in the registry. available: its files are there, or were when it was registered."""

    reference: Reference
    available: bool
    card: Card
    files: dict[str, str]
    who: str
    at: datetime


def who() -> str:
    """Who gives a command, as user@host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def serving(table: str) -> str:
    """A table of the serving database of the current prefix, quoted."""
    return f"{db.names([settings().database('serving')])}.{table}"


def register(c: Client, folder: Path) -> tuple[Registered, bool]:
    """Keeps a model folder, every file in it. Doing it again changes nothing.

    Returns:
        The model as it is registered, and whether this call did it.

    Raises:
        UserError: no model there, or another card of the same name and ONNX file is registered.
    """
    card, _ = load_model(folder)
    known = {r.reference[:2]: r for r in registered(c)}.get((card.name, card.version))
    if known:
        theirs, ours = (x.model_dump(exclude=_CIRCUMSTANCES) for x in (known.card, card))
        if differing := [name for name, value in ours.items() if value != theirs[name]]:
            raise UserError(
                f"{known.reference} is registered with another card (other {', '.join(differing)}): "
                "train under another name"
            )
        if known.available and not broken_files(c, known):
            return known, False
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, content in contents.items():
        c.execute(f"insert into {serving('model_files')} (sha256, content) values", [(files[name], content)])
    row = (card.name, card.version, True, contents[CARD_FILE].decode(), files, who(), datetime.now(UTC))
    c.execute(f"insert into {serving('models')} ({_COLUMNS}) values", [row])
    return _registered(row), True


def registered(c: Client) -> list[Registered]:
    """Every model, the last registered last."""
    rows = c.execute(
        f"select {_COLUMNS} from (select * from {serving('models')} "
        "order by at desc limit 1 by model_name, model_version) order by at, model_name, model_version"
    )
    return [_registered(row) for row in rows]


def find(c: Client, text: str) -> Registered:
    """The model that NAME[:VERSION] means: without a version the last one that is available; a version may be cut short.

    Raises:
        UserError: there is none, or several.
    """
    name, _, version = text.partition(":")
    models = registered(c)
    named = [r for r in models if r.reference.name == name]
    if not named:
        there = ", ".join(sorted({r.reference.name for r in models}))
        raise UserError(
            f"no model {name!r} is registered: "
            + (f"there is {there}" if there else "run `marketprism models register`")
        )
    if not version:
        return ([r for r in named if r.available] or named)[-1]
    fitting = [r for r in named if r.reference.version.startswith(version)]
    if len(fitting) != 1:
        said = ", ".join(r.reference.version for r in fitting or named)
        raise UserError(f"{text!r} is {'not one model' if fitting else 'no version'}: there is {said}")
    return fitting[0]


def load(reference: Reference, client: Client | None = None) -> tuple[Card, bytes]:
    """The card and the ONNX bytes of a registered model: from this host's cache, else from the database.

    Raises:
        UserError: it is not registered, a file is gone or is not what its hash says.
    """
    if client is None:
        with db.connect() as own:
            return load(reference, own)
    found = client.execute(
        f"select files from {serving('models')} where model_name = %(n)s and model_version = %(v)s "
        "order by at desc limit 1",
        {"n": reference.name, "v": reference.version},
    )
    if not found:
        raise UserError(f"{reference} is not registered: run `marketprism models list`")
    [(files,)] = found
    onnx, text = (_content(client, reference, name, files[name]) for name in (ONNX_FILE, CARD_FILE))
    try:
        card = Card.model_validate_json(text)
    except ValidationError as e:
        raise UserError(
            f"the card of {reference} cannot be read here: {e.errors()[0]['msg']}. Train again"
        ) from e
    if reference.table != card.table:
        raise UserError(f"{reference} reads {card.table}, the deployment says {reference.table}")
    return card, onnx


def broken_files(c: Client, model: Registered) -> list[str]:
    """Names of a model's files that the database cannot give back as they were."""
    whole = {
        sha
        for (sha,) in c.execute(
            f"select distinct sha256 from {serving('model_files')} "
            "where sha256 in %(all)s and lower(hex(SHA256(content))) = sha256",
            {"all": tuple(model.files.values())},
        )
    }
    return [name for name, sha in model.files.items() if sha not in whole]


def mark(c: Client, references: list[Reference], *, available: bool) -> None:
    """Says of models that their files are there, or no longer. One insert."""
    table = serving("models")
    c.execute(
        f"insert into {table} ({_COLUMNS}) "
        "select model_name, model_version, %(available)s, card, files, %(who)s, now64(6) "
        f"from {table} where (model_name, model_version) in %(models)s "
        "order by at desc limit 1 by model_name, model_version",
        {"available": available, "who": who(), "models": tuple(r[:2] for r in references)},
    )


def orphans(c: Client, young_s: int) -> list[str]:
    """Hashes of the files that no available model has, but for the young: their models' rows may be yet to come."""
    needed = {sha for model in registered(c) if model.available for sha in model.files.values()}
    files = c.execute(
        f"select sha256 from {serving('model_files')} group by sha256 "
        "having max(created_at) < now64(6) - toIntervalSecond(%(young)s) order by sha256",
        {"young": young_s},
    )
    return [sha for (sha,) in files if sha not in needed]


def delete(c: Client, hashes: list[str], young_s: int) -> None:
    """Deletes files, here and in this host's cache; not what a registration wrote anew meanwhile."""
    if hashes:
        c.execute(
            f"delete from {serving('model_files')} where sha256 in %(hashes)s "
            "and created_at < now64(6) - toIntervalSecond(%(young)s)",
            {"hashes": tuple(hashes), "young": young_s},
        )
    for sha in hashes:
        _cached(sha).unlink(missing_ok=True)


def _registered(row: tuple[str, str, bool, str, dict[str, str], str, datetime]) -> Registered:
    name, version, available, text, files, by, at = row
    card = Card.model_validate_json(text)
    return Registered(Reference(name, version, card.table), available, card, files, by, at)


def _cached(sha: str) -> Path:
    return settings().data_dir / "model_files" / sha


def _content(c: Client, reference: Reference, name: str, sha: str) -> bytes:
    """A file by its hash. What is in the cache and is not what it should be is fetched again."""
    path = _cached(sha)
    if path.is_file() and hashlib.sha256(content := path.read_bytes()).hexdigest() == sha:
        return content
    found = c.execute(
        f"select content from {serving('model_files')} where sha256 = %(sha)s "
        "order by created_at desc limit 1",
        {"sha": sha},
        settings={"strings_as_bytes": True},
    )
    if not found or hashlib.sha256(found[0][0]).hexdigest() != sha:
        state = "damaged" if found else "gone"
        raise UserError(f"{name} of {reference} is {state} in the database: register the model again")
    fetched: bytes = found[0][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as scratch:
        scratch.write(fetched)
    Path(scratch.name).replace(path)  # whole or not at all, also for other readers
    return fetched
