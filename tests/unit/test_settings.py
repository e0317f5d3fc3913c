from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from python_udfs import server
from python_udfs.settings import REPOSITORY, Settings, settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MARKETPRISM_{name.upper()}", raising=False)


def test_defaults_name_the_local_server_and_the_real_databases() -> None:
    s = Settings()
    assert (s.target, s.host, s.port, s.http_port) == ("local", "127.0.0.1", 19000, 18123)
    assert [s.database(layer) for layer in ("hot", "cold", "features", "serving")] == [
        "marketprism_hot",
        "marketprism_cold",
        "marketprism_features",
        "marketprism_serving",
    ]
    assert s.data_dir == REPOSITORY / ".marketprism"
    assert (s.hot_ttl_days, s.cold_ttl_days) == (0, 0)


def test_environment_wins_and_the_prefix_is_in_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETPRISM_PORT", "9440")
    monkeypatch.setenv("MARKETPRISM_SECURE", "true")
    monkeypatch.setenv("MARKETPRISM_DB_PREFIX", "ci_7_")
    monkeypatch.setenv("MARKETPRISM_NOT_A_SETTING", "is ignored")
    s = Settings()
    assert (s.port, s.secure, s.database("hot")) == (9440, True, "ci_7_marketprism_hot")


@pytest.mark.parametrize("prefix", ["Ci_", "7_", "_x", "a-b", "a b", "a`; drop", "é", "a\n"])
def test_a_prefix_that_could_not_be_a_plain_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="MARKETPRISM_DB_PREFIX: lower-case letters"):
        Settings(db_prefix=prefix)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 0), ("port", 65536), ("target", "cloud"), ("hot_ttl_days", -1), ("cold_ttl_days", -1)],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: value})


def test_data_dir_is_absolute_whatever_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Settings(data_dir=Path("x/../data")).data_dir == tmp_path / "data"
    assert Settings(data_dir=Path("~/data")).data_dir == tmp_path / "home" / "data"


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.cache_clear()
    first = settings()
    monkeypatch.setenv("MARKETPRISM_PORT", "1234")
    assert settings() is first
    settings.cache_clear()
    assert settings().port == 1234
    settings.cache_clear()


def test_the_wheel_that_the_server_wants_is_the_one_that_gets_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"chdb-core=={server.WHEEL}" in project["dependencies"]
    assert f"chdb-core=={server.WHEEL} " in (REPOSITORY / "requirements.lock").read_text()


def test_a_password_is_read_from_its_file_and_the_variable_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(" it's secret \n")
    monkeypatch.setenv("MARKETPRISM_PASSWORD_FILE", str(file))
    assert Settings().password == " it's secret "
    monkeypatch.setenv("MARKETPRISM_PASSWORD", "other")
    assert Settings().password == "other"


@pytest.mark.parametrize("name", ["password_file", "ca_file"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=rf"MARKETPRISM_{name.upper()}: .*nothing is no file"):
        Settings.model_validate({name: tmp_path / "nothing"})


def test_a_cluster_is_a_plain_name() -> None:
    assert Settings(cluster="main_1").cluster == "main_1"
    with pytest.raises(ValidationError, match="MARKETPRISM_CLUSTER: letters"):
        Settings(cluster='x" sync')
