"""Every setting of the project, in one place. Each is an environment variable `MARKETPRISM_<NAME>`."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent
Layer = Literal["hot", "cold", "features", "serving"]


class Budget(BaseModel):
    """What the stages of a prediction may take, in milliseconds; `total` leaves room for storing it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: float = Field(gt=0)
    prepare: float = Field(gt=0)
    run: float = Field(gt=0)
    total: float = Field(gt=0)


class Settings(BaseSettings):
    """Where the database is and how rows are kept. Times in days; 0 keeps rows for ever."""

    model_config = SettingsConfigDict(env_prefix="MARKETPRISM_", extra="ignore")

    host: str = Field("127.0.0.1", description="ClickHouse host")
    port: int = Field(19000, description="ClickHouse native-protocol port", ge=1, le=65535)
    http_port: int = Field(18123, description="HTTP port of the local server (for browsers; unused by us)")
    user: str = Field("default", description="ClickHouse user")
    password: str = Field("", description="ClickHouse password")
    password_file: Path | None = Field(
        None, description="a file with the password, read where MARKETPRISM_PASSWORD is not set"
    )
    secure: bool = Field(False, description="TLS on the native protocol")
    verify: bool = Field(True, description="with TLS: the server's certificate must be valid")
    ca_file: Path | None = Field(
        None, description="with TLS: a file of certificates (PEM) to trust instead of the public ones"
    )
    cluster: str = Field("", description="name of the ClickHouse cluster to create tables on; empty: none")
    target: Literal["local", "server"] = Field(
        "local", description="`local`: we start and stop the server; `server`: it is yours, we only connect"
    )
    db_prefix: str = Field("", description="put before every database name: isolates test runs")
    data_dir: Path = Field(
        REPOSITORY / ".marketprism", description="the local server's data, generated data, reports, models"
    )
    hot_ttl_days: int = Field(0, ge=0, description="days a hot raw row is kept after it was loaded")
    cold_ttl_days: int = Field(0, ge=0, description="days a cold raw row is kept after it was loaded")
    archive_after_days: int = Field(
        0, ge=0, description="days after its event a raw row may move from hot to cold; 0: never"
    )
    backup_dir: Path | None = Field(
        None,
        description="where the local server may write and read backups; none: `backups` in the data folder",
    )

    inputs_ttl_days: int = Field(
        30, ge=0, description="days the inputs of a prediction are kept for a replay"
    )
    confidence: float = Field(
        0.6, ge=0, le=1, description="the signal is 0 where the likeliest class is less likely than this"
    )
    max_missing: float = Field(
        0.05,
        ge=0,
        le=1,
        description="a model is not served on a row that lacks more than this share of inputs",
    )
    window_max_gap_s: float = Field(
        3600,
        gt=0,
        description="a longer silence between two buckets cuts a model's window: older rows are missing",
    )
    deployment_poll_s: float = Field(
        2, ge=0, le=5, description="seconds between two looks at what is deployed while scoring"
    )
    states_poll_s: float = Field(
        2, ge=0, le=5, description="seconds between two looks at the instruments' states while scoring"
    )
    # source 004: a baseline has 10 + 5 ms of 20, a student 20 + 20 ms of 50; the rest is for what follows
    baseline_budget_ms: Budget = Field(
        Budget(read=8, prepare=2, run=5, total=20), description="of a model that reads one row, as JSON"
    )
    network_budget_ms: Budget = Field(
        Budget(read=14, prepare=6, run=20, total=50), description="of a network, as JSON"
    )

    @field_validator("password_file", "ca_file")
    @classmethod
    def _there(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not value.expanduser().is_file():
            raise ValueError(f"MARKETPRISM_{str(info.field_name).upper()}: {value} is no file")
        return value and value.expanduser().resolve()

    @field_validator("cluster")
    @classmethod
    def _plain_cluster(cls, value: str) -> str:
        if not re.fullmatch(r"\w*", value):
            raise ValueError("MARKETPRISM_CLUSTER: letters, digits and _ only")
        return value

    @model_validator(mode="after")
    def _read_password(self) -> Settings:
        if self.password_file and not self.password:
            self.password = self.password_file.read_text().rstrip("\n")
        return self

    @field_validator("db_prefix")
    @classmethod
    def _plain_prefix(cls, value: str) -> str:
        if not re.fullmatch(r"([a-z][a-z0-9_]*)?", value):
            raise ValueError("MARKETPRISM_DB_PREFIX: lower-case letters, digits and _ only, e.g. `ci_`")
        return value

    @field_validator("data_dir", "backup_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().resolve() if value else None

    @property
    def backups(self) -> Path:
        """Where backups lie: the local server can reach no other place."""
        return self.backup_dir or self.data_dir / "backups"

    def database(self, layer: Layer) -> str:
        """The full database name of a layer, prefix included."""
        return f"{self.db_prefix}marketprism_{layer}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once. Tests call `settings.cache_clear()` after changing the environment."""
    return Settings()
