"""Decisions as text: what is taken, what is refused and how it is told, and what a second file changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from python_udfs.errors import BadFileError
from python_udfs.experts.records import (
    Decision,
    Rules,
    parse,
    read_file,
    read_horizons,
    show_horizon,
)
from python_udfs.experts.store import Plan, Version, plan
from python_udfs.ingest.availability import Instrument, read_instruments
from python_udfs.settings import REPOSITORY

NOW = 1_767_620_000_000_000  # 2026-01-05 13:33:20 UTC
BTC = Instrument("binance", "spot", "BTCUSDT")
RULES = Rules({BTC, Instrument("binance", "linear", "BTCUSDT")}, ["3", "30s"], NOW)
HEADER = "expert,exchange,market_type,symbol,decided_at,intent,horizon,rationale,size,confidence,outcome,entered_at"
GOOD = (
    "ann,binance,spot,BTCUSDT,2026-01-05T00:00:01.250001Z,buy,30 s,the bid held,0.5,0.8,,2026-01-05T00:00:03Z"
)
CELLS = dict(zip(HEADER.split(","), GOOD.split(","), strict=True))


def file(tmp_path: Path, *lines: str, encoding: str = "utf-8", end: str = "\n") -> Path:
    path = tmp_path / "decisions.csv"
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    return path


def decision(**changes: object) -> Decision:
    found = parse(CELLS, RULES, 2)
    assert isinstance(found, Decision), found
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_line_is_read() -> None:
    assert decision() == Decision(
        "ann",
        BTC,
        1_767_571_201_250_001,
        1_767_571_203_000_000,
        "buy",
        0.5,
        0.8,
        "30s",
        "the bid held",
        "",
        2,
    )


@pytest.mark.parametrize(
    ("text", "horizon"),
    [
        ("3 buckets", "3"),
        ("3b", "3"),
        ("3 Buckets", "3"),
        ("30s", "30s"),
        ("30 sec", "30s"),
        ("30 SECONDS", "30s"),
    ],
)
def test_horizons_as_people_write_them(text: str, horizon: str) -> None:
    found = parse({**CELLS, "horizon": text}, RULES)
    assert isinstance(found, Decision)
    assert found.horizon == horizon


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        ("expert", " ", "missing_field: blank"),
        ("rationale", "", "missing_field: blank"),
        ("symbol", "BTCUSDC", "unknown_symbol: binance:spot:BTCUSDC is not in seeds/instruments.csv; add it"),
        ("market_type", "swap", "known: binance:linear:BTCUSDT, binance:spot:BTCUSDT"),
        ("decided_at", "2026-01-05T00:00:01", "no_zone: '2026-01-05T00:00:01' has no time zone; expected such as"),
        ("decided_at", "yesterday", "bad_time: 'yesterday'; expected such as"),
        ("decided_at", "1767571201", "bad_time: '1767571201'; expected such as"),
        ("decided_at", "2027-01-05T00:00:01Z", "out_of_range: "),
        ("decided_at", "1970-01-05T00:00:01Z", "out_of_range: "),
        ("entered_at", "2026-01-05T00:00:00Z", "out_of_range: before decided_at"),
        ("entered_at", "2026-01-05", "no_zone: "),
        ("intent", "long", "bad_value: 'long'; expected buy, sell or hold"),
        ("horizon", "4 buckets", "unknown_horizon: '4 buckets' is no horizon of the labels; expected one of 3 buckets, 30 s"),
        ("horizon", "30", "unknown_horizon: "),
        ("horizon", "1 min", "unknown_horizon: "),
        ("size", "-1", "out_of_range: '-1'; expected a number above 0"),
        ("size", "0", "out_of_range: "),
        ("size", "nan", "out_of_range: "),
        ("size", "1,5", "bad_number: "),
        ("confidence", "80", "out_of_range: '80'; expected a number from 0 to 1"),
        ("confidence", "inf", "out_of_range: "),
        ("outcome", "a\0b", "bad_value: holds a NUL byte"),
        ("rationale", "caf\udce9", "not_utf8: save the file as UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_field_is_told(field: str, text: str, reason: str) -> None:
    faults = parse({**CELLS, field: text}, RULES)
    assert isinstance(faults, list)
    [(where, what)] = faults
    assert where == ("symbol" if field == "market_type" else field)
    assert reason in what


def test_all_faults_of_a_line_are_told() -> None:
    faults = parse({**CELLS, "intent": "x", "horizon": "", "size": "x"}, RULES)
    assert isinstance(faults, list)
    assert {field for field, _ in faults} == {"intent", "horizon", "size"}


def test_an_offset_is_a_zone() -> None:
    found = parse({**CELLS, "decided_at": "2026-01-05T08:00:01.250001+08:00"}, RULES)
    assert isinstance(found, Decision)
    assert found.decision_id == decision().decision_id


def test_the_id_is_of_the_natural_key() -> None:
    same = decision(intent="sell", size=None, rationale="other", outcome="won", entered_at=None, line=9)
    assert same.decision_id == decision().decision_id
    others = [
        decision(expert="bob"),
        decision(instrument=Instrument("binance", "linear", "BTCUSDT")),
        decision(decided_at=decision().decided_at + 1),
        decision(horizon="3"),
    ]
    assert len({d.decision_id for d in [decision(), *others]}) == 5
    assert (
        decision().decision_id == "b3db2a45e21b3519066a4d018b622fe2"
    )  # an id that changes would make every stored decision a new one


def test_bom_quotes_newlines_blank_lines_and_any_line_end(tmp_path: Path) -> None:
    spoken = GOOD.replace("the bid held", '"he said ""buy"",\r\nthen\nleft"').replace("01.25", "02.25")
    path = file(tmp_path, HEADER.title(), "", spoken, " , ,", GOOD, encoding="utf-8-sig", end="\r\n")
    found, bad = read_file(path, RULES)
    assert not bad
    assert [(d.line, d.rationale) for d in found] == [
        (3, 'he said "buy",\r\nthen\nleft'),
        (7, "the bid held"),
    ]


def test_columns_in_any_order_and_without_the_optional_ones(tmp_path: Path) -> None:
    names = ["rationale", "symbol", "exchange", "intent", "expert", "market_type", "horizon", "decided_at"]
    [found], bad = read_file(file(tmp_path, ",".join(names), ",".join(CELLS[n] for n in names)), RULES)
    assert not bad
    assert found == decision(size=None, confidence=None, entered_at=None)


def test_every_bad_line_is_reported(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        HEADER,
        GOOD,
        GOOD.replace("buy", "long"),
        GOOD.replace("the bid held", "the bid, it held"),
        GOOD.replace("30 s", "31 s").replace("BTCUSDT", "XYZ"),
    )
    path.write_bytes(path.read_bytes() + GOOD.encode().replace(b"held", b"h\xe9ld") + b"\n")
    found, bad = read_file(path, RULES)
    assert [d.line for d in found] == [2]
    assert [(b.line, b.field, b.reason.split(":")[0]) for b in bad] == [
        (3, "intent", "bad_value"),
        (4, "", "bad_record"),
        (5, "symbol", "unknown_symbol"),
        (5, "horizon", "unknown_horizon"),
        (6, "rationale", "not_utf8"),
    ]
    assert bad[0].raw == GOOD.replace("buy", "long") + "\n"
    assert all(b.raw.encode() for b in bad)  # a lone surrogate would not go into the database


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: expected a header with expert"),
        (b"\n \n", "empty: expected a header"),
        (HEADER.encode(), "no decision below the header"),
        (GOOD.encode(), ":1: no header: expected expert, exchange"),
        (HEADER.replace(",", ";").encode(), "separate columns by commas"),
        (HEADER.replace("intent,", "").encode(), ":1 [intent]: no such column in the header"),
        (HEADER.replace("size", "amount").encode(), ":1 [amount]: unknown column"),
        (HEADER.replace("size", "intent").encode(), ":1 [intent]: the column is there twice"),
        (f"{HEADER}\n{GOOD}\n".encode("utf-16"), "is UTF-16: save it as CSV UTF-8"),
        (f'{HEADER}\n{GOOD}\nann,"open\n{GOOD}\n'.encode(), ":3: unexpected end of data: is a quote open"),
    ],
)
def test_a_file_of_which_no_line_can_be_trusted_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(BadFileError) as e:
        read_file(path, RULES)
    assert str(e.value).startswith(str(path))
    assert reason in str(e.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="cannot be read: No such file"):
        read_file(tmp_path / "none.csv", RULES)


def test_the_example_is_good() -> None:
    known = Rules(read_instruments(), read_horizons(), NOW)
    found, bad = read_file(REPOSITORY / "docs" / "expert_decisions.csv", known)
    assert not bad
    assert {d.intent for d in found} == {"buy", "sell", "hold"}
    assert all("EXAMPLE" in d.rationale for d in found)


def test_horizons_are_those_of_the_labels(tmp_path: Path) -> None:
    assert {"1", "3", "5", "5s", "300s"} <= set(read_horizons())
    path = tmp_path / "labels.yml"
    path.write_text("models: [{name: x, columns: [{name: label_known_at_7}, {name: label_known_at_x_9s}]}]")
    assert read_horizons(path) == ["7"]
    path.write_text("models: [{name: x}]")
    with pytest.raises(BadFileError, match="lists no label_known_at"):
        read_horizons(path)
    assert (show_horizon("3"), show_horizon("30s")) == ("3 buckets", "30 s")


# ---- what a second file changes ------------------------------------------------------------------------

D = decision()
LATER = replace(D, intent="sell", entered_at=(D.entered_at or 0) + 1)


def stored(*decisions: Decision, load_id: str = "file 1", now: int = NOW) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = {}
    for d in decisions:
        version = Version(now if d.entered_at is None else d.entered_at, d.content, load_id, d.line)
        found.setdefault(d.decision_id, []).append(version)
    return found


def counts(p: Plan) -> tuple[int, int, int, int, int]:
    return len(p.new), len(p.corrections), p.unchanged, p.duplicates, len(p.bad)


@pytest.mark.parametrize(
    ("decisions", "there", "expected"),
    [
        ([D], {}, (1, 0, 0, 0, 0)),
        ([D, D], {}, (1, 0, 0, 1, 0)),
        ([D, replace(D, line=3)], {}, (1, 0, 0, 1, 0)),
        ([D], stored(D), (0, 0, 1, 0, 0)),
        ([D, LATER], {}, (1, 1, 0, 0, 0)),
        ([LATER], stored(D), (0, 1, 0, 0, 0)),
        # the first file again, after a correction
        ([D], stored(D, LATER), (0, 0, 1, 0, 0)),
        # two opinions of one moment; one that comes before what is there
        ([D, replace(D, intent="sell", line=3)], {}, (1, 0, 0, 0, 1)),
        ([replace(D, intent="hold", line=7)], stored(LATER), (0, 0, 0, 0, 1)),
        ([LATER, replace(D, line=3)], {}, (1, 0, 0, 0, 1)),
        # no entered_at: now
        ([replace(D, entered_at=None)], stored(D), (0, 0, 1, 0, 0)),
        ([replace(D, entered_at=None, outcome="won")], stored(D), (0, 1, 0, 0, 0)),
        ([replace(D, entered_at=None), replace(D, entered_at=None, outcome="won", line=3)], {}, (1, 0, 0, 0, 1)),
    ],
)  # fmt: skip
def test_what_is_stored(
    decisions: list[Decision], there: dict[str, list[Version]], expected: tuple[int, int, int, int, int]
) -> None:
    assert counts(plan(decisions, there, NOW, "file 2")) == expected


def test_the_same_file_again_changes_nothing_even_after_a_correction_without_a_time() -> None:
    first = replace(D, entered_at=None)
    there = stored(first)
    corrected = replace(first, intent="sell", line=0)
    there[D.decision_id] += stored(corrected, load_id="", now=NOW + 5)[D.decision_id]
    assert counts(plan([first], there, NOW + 9, "file 1")) == (0, 0, 1, 0, 0)
    # another file that says what the first did is a correction back
    assert counts(plan([first], there, NOW + 9, "file 2")) == (0, 1, 0, 0, 0)


def test_a_conflict_names_the_other_line() -> None:
    [bad] = plan([D, replace(D, intent="sell", line=3)], {}, NOW).bad
    assert (bad.line, bad.field) == (3, "entered_at")
    assert bad.reason.startswith("conflict: line 2 has another version of this decision")


def test_a_file_with_two_opinions_is_not_settled_by_loading_it_again() -> None:
    one, other = replace(D, entered_at=None), replace(D, entered_at=None, intent="sell", line=3)
    assert counts(plan([one, other], {}, NOW, "file 1")) == (1, 0, 0, 0, 1)
    again = plan([one, other], stored(one), NOW + 9, "file 1")
    assert counts(again) == (0, 0, 1, 0, 1)
    assert again.bad[0].reason.startswith("conflict: line 2 ")
    # another file may correct it
    assert counts(plan([other], stored(one), NOW + 9, "file 2")) == (0, 1, 0, 0, 0)
    [late] = plan([replace(D, intent="hold", line=8)], stored(LATER), NOW, "file 2").bad
    assert late.reason.startswith("conflict: the store ")
