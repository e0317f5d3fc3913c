"""Every stored prediction gives the same bits again; what was tampered with is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
import typer
from clickhouse_driver import Client
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, Column, ModelType, load_model
from python_udfs.scorer.cli import replay_command
from python_udfs.scorer.registry import Reference
from python_udfs.scorer.replay import Replay, find_requests, replay
from python_udfs.scorer.scorer import Deployments, Scorer
from python_udfs.settings import Settings, settings
from python_udfs.training.baselines import fit
from python_udfs.training.export import to_onnx
from tests.scoring import NOON, bucket, create, make_model
from tests.support import execute

Environment = Callable[..., AbstractContextManager[None]]
Instrument = tuple[str, str, str]
WIDTH, WINDOW = 40, 12
COLUMNS = [Column(name=f"f{i:02}", type="Nullable(Float64)") for i in range(WIDTH)]
INSTRUMENTS = [("x", "spot", f"S{i}") for i in range(8)]
STEPS = 54
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class State:
    champion: Reference | None
    challenger: Reference | None
    baseline: Reference | None
    share: int = 20
    sequence: int = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a logistic baseline as trained, and two networks."""
    rng = np.random.default_rng(3)
    data = tmp_path_factory.mktemp("data")
    features = rng.normal(size=(900, WIDTH)).astype(np.float32)
    features[rng.random(features.shape) < 0.02] = np.nan
    labels = np.sign(np.round(np.nan_to_num(features[:, 0]) + 0.4 * rng.normal(size=900))).astype(np.int8)
    logistic = to_onnx(fit(ModelType.LOGISTIC, features, labels, 1), WIDTH)
    make_model(data / "models" / "logistic", [np.zeros((WIDTH, 3))], features=COLUMNS, content=logistic)
    for name, hidden in (("student", 16), ("teacher", 64)):
        make_model(
            data / "models" / name,
            [rng.normal(size=(WINDOW * WIDTH, hidden)) / 9, rng.normal(size=(hidden, 3))],
            features=COLUMNS,
            window=WINDOW,
            source="sequence_inputs",
        )
    return data


@pytest.fixture(scope="module")
def predicted(module_store: Settings, folder: Path, environment: Environment) -> Iterator[Path]:
    """A thousand predictions: three models on eight instruments, the requests of different sizes."""
    rng = np.random.default_rng(4)
    for table in ("feature_vector_v1", "sequence_inputs_v1"):
        create(COLUMNS, table)
    rows = []
    for k in range(STEPS):
        for instrument in INSTRUMENTS:
            values = rng.normal(size=WIDTH)
            # some are stale or lack too much: they are replayed like the others
            gaps = rng.random(WIDTH) < rng.choice([0, 0.01, 0.2])
            row = bucket(instrument, NOON + 2 * k * SECOND)[:6]  # type: ignore[arg-type]
            rows.append((*row, *(None if gap else float(v) for v, gap in zip(values, gaps, strict=True))))
    for table in ("feature_vector_v1", "sequence_inputs_v1"):
        execute(f"insert into {table} values", rows, layer="features")

    def load(reference: Reference) -> tuple[Card, bytes]:
        return load_model(folder / "models" / reference.name)

    state = State(*(Reference(name, "", "") for name in ("student", "teacher", "logistic")))
    deployments = Deployments(lambda _: state, load, lambda instrument, _c, _s: instrument.endswith("3"))
    with environment(data_dir=str(folder)):
        from python_udfs.scorer.relation import Instrument as Named

        with Scorer(deployments) as scorer:
            for k in range(STEPS):
                named = [Named(*i) for i in INSTRUMENTS[: 1 + k % 8]] if k % 2 else None
                scorer.score(named, as_of=NOON + (2 * k + 90 * (k % 5 == 4)) * SECOND)
        yield folder


def replays(load: Callable[[Client, Reference], tuple[Card, bytes]] | None = None) -> list[Replay]:
    with db.connect() as c:
        return list(replay(c, find_requests(c, last=10_000), **({"load": load} if load else {})))


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(replay_command)
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, UserError):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def request_of(where: str = "true") -> tuple[UUID, str]:
    """A request and the hash of an input of it that no other request has."""
    with db.connect(settings().database("serving")) as c:
        [found] = c.execute(
            f"select any(request_id) as request, feature_hash from predictions where {where} "
            "group by feature_hash having uniqExact(request_id) = 1 order by feature_hash limit 1"
        )
    return found  # type: ignore[no-any-return]


def test_a_thousand_predictions_are_the_same_to_the_bit(predicted: Path) -> None:
    found = replays()
    assert [r for r in found if r.differences] == []
    assert sum(r.rows for r in found) >= 1000
    assert {r.role for r in found} == {"champion", "challenger", "baseline"}
    with db.connect(settings().database("serving")) as c:
        [(n, served, batches)] = c.execute(
            "select count(), groupUniqArray(fallback), uniqExact(batch_size) from predictions"
        )
        assert n == sum(r.rows for r in found)
        assert set(served) == {"", "baseline", "none"}
        assert batches == 4
    code, shown = run("--last", "10000")
    assert code == 0
    assert shown.endswith(f"{n} predictions in {len(found)} model runs: {len(found)} the same, 0 differ")


def test_the_batch_has_to_be_the_same(predicted: Path) -> None:
    """Why a request is replayed whole: the logistic model's bits depend on how many rows it has at once."""
    card, onnx = load_model(predicted / "models" / "logistic")
    from python_udfs.scorer.model import Model

    model = Model(card, onnx)
    inputs = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    one_by_one = np.concatenate([model.run(inputs[i : i + 1]) for i in range(64)])
    assert np.allclose(model.run(inputs), one_by_one)
    assert (model.run(inputs) != one_by_one).any()


def test_one_request_and_those_since_a_time(predicted: Path) -> None:
    request, _ = request_of("role = 'baseline' and batch_size = 4")
    code, shown = run(str(request))
    assert (code, "12 predictions in 3 model runs: 3 the same, 0 differ" in shown) == (0, True)
    with db.connect() as c:
        late = find_requests(c, since=NOON + 2 * (STEPS - 3) * SECOND)
        assert find_requests(c, last=1)[0] in late
        with pytest.raises(UserError, match="there is no such prediction"):
            find_requests(c, request=uuid4())
    assert len(late) == sum(2 * k + 90 * (k % 5 == 4) >= 2 * (STEPS - 3) for k in range(STEPS))
    assert run("--since", "2024-08-08T12:01:00")[0] == 0


@pytest.mark.parametrize(
    "arguments", [(), ("--last", "2", "--since", "2024-08-08"), (str(uuid4()), "--last", "1")]
)
def test_what_to_replay_is_said_once(server: Settings, arguments: tuple[str, ...]) -> None:
    code, shown = run(*arguments)
    assert code == 2
    assert "give a REQUEST_ID, or --last N, or --since TIME" in shown


def test_bad_input_says_what_is_wrong(server: Settings) -> None:
    with pytest.raises(UserError, match="'42' is no request id"):
        run("42")
    with pytest.raises(UserError, match=r"--since 'noon': write a time such as 2024-08-08T12:00:00$"):
        run("--since", "noon")


@pytest.fixture
def changing(predicted: Path) -> Iterator[Callable[[str], None]]:
    """Runs mutations of the serving tables; puts them back as they were."""
    names = ("predictions", "prediction_inputs")
    for name in names:
        execute(f"create table kept_{name} as {name}", layer="serving")
        execute(f"insert into kept_{name} select * from {name}", layer="serving")

    def change(sql: str) -> None:
        execute(f"{sql} settings mutations_sync = 2", layer="serving")

    yield change
    for name in names:
        execute(f"exchange tables {name} and kept_{name}", layer="serving")
        execute(f"drop table kept_{name} sync", layer="serving")


def test_a_tampered_input_is_named(changing: Callable[[str], None]) -> None:
    request, hashed = request_of("role = 'baseline' and batch_size > 1")
    # the lowest bit of one number
    changing(
        "alter table prediction_inputs update inputs = arrayMap((x, i) -> if(i = 7, "
        "reinterpretAsFloat32(bitXor(reinterpretAsUInt32(x), 1)), x), inputs, arrayEnumerate(inputs)) "
        f"where feature_hash = '{hashed}'"
    )
    code, shown = run(str(request))
    assert code == 1
    assert "the stored inputs are not those of the hash" in shown
    assert "2 the same, 1 differ" in shown
    assert shown.count("the stored inputs") == 1
    [bad] = [r for r in replays() if r.differences]
    assert (bad.request_id, bad.role) == (request, "baseline")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("score = score + 0.001", "score "),
        (
            "probabilities = arrayMap((p, i) -> if(i = 2, reinterpretAsFloat32(bitXor(reinterpretAsUInt32(p), 1)), p), "
            "probabilities, [1, 2, 3])",
            "probabilities ",
        ),
        ("signal = -signal - 1", "signal "),
    ],
)
def test_a_tampered_output_is_named(changing: Callable[[str], None], change: str, named: str) -> None:
    request, _ = request_of("role = 'champion' and unusable = '' and fallback = ''")
    where = f"request_id = '{request}' and role = 'champion' and place = 0"
    changing(f"alter table predictions update {change} where {where}")
    code, shown = run(str(request))
    assert code == 1
    assert (
        f"student:{load_model(settings().data_dir / 'models' / 'student')[0].version} x:spot:S0: {named}"
        in shown
    )
    assert ", now " in shown


def test_inputs_that_are_gone_are_no_silent_success(changing: Callable[[str], None]) -> None:
    request, hashed = request_of("role = 'champion'")
    changing(f"alter table prediction_inputs delete where feature_hash = '{hashed}'")
    code, shown = run(str(request))
    assert (code, "its inputs are gone: they are kept 30 days" in shown) == (1, True)


def test_half_a_request_cannot_be_replayed(changing: Callable[[str], None]) -> None:
    request, _ = request_of("role = 'champion' and batch_size = 8")
    changing(f"alter table predictions delete where request_id = '{request}' and place = 3")
    code, shown = run(str(request))
    assert code == 1
    assert shown.count("7 rows are there of a run of 8: its bits cannot be made again") == 3


def test_a_model_that_is_not_the_one_is_named(predicted: Path, tmp_path: Path) -> None:
    other = make_model(
        tmp_path / "student", [np.ones((WINDOW * WIDTH, 3))], features=COLUMNS, window=WINDOW, source="sequence_inputs"
    )  # fmt: skip

    def load(c: Client, reference: Reference) -> tuple[Card, bytes]:
        assert reference.table == (
            "feature_vector_v1" if reference.name == "logistic" else "sequence_inputs_v1"
        )
        return load_model(other if reference.name == "student" else predicted / "models" / reference.name)

    bad = [r for r in replays(load) if r.differences]
    assert {r.role for r in bad} == {"champion"}
    assert len(bad) == STEPS
    assert all(d.what.startswith("probabilities ") for r in bad for d in r.differences)


def test_a_model_file_that_was_changed_is_named(predicted: Path) -> None:
    onnx = predicted / "models" / "teacher" / "model.onnx"
    whole = onnx.read_bytes()
    onnx.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        code, shown = run("--last", "2")
    finally:
        onnx.write_bytes(whole)
    assert code == 1
    assert "challenger teacher:" in shown
    assert "the model is not to be had" in shown
    assert "is not registered" in shown


def test_another_runtime_is_said(changing: Callable[[str], None], predicted: Path) -> None:
    request, _ = request_of("role = 'champion' and unusable = ''")
    changing(
        f"alter table predictions update runtime = 'onnxruntime 0.1', confidence = 0 where request_id = '{request}'"
    )
    assert "it ran under onnxruntime 0.1, this is onnxruntime" in run(str(request))[1]
