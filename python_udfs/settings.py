"""Every setting of the project, in one place. Each is an environment variable `MARKETPRISM_<NAME>`."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent
Layer = Literal["hot", "cold", "features", "serving"]


class Settings(BaseSettings):
    """Where the database is and how rows are kept. Times in days; 0 keeps rows for ever."""

    model_config = SettingsConfigDict(env_prefix="MARKETPRISM_", extra="ignore")

    host: str = Field("127.0.0.1", description="ClickHouse host")
    port: int = Field(19000, description="ClickHouse native-protocol port", ge=1, le=65535)
    http_port: int = Field(18123, description="HTTP port of the local server (for browsers; unused by us)")
    user: str = Field("default", description="ClickHouse user")
    password: str = Field("", description="ClickHouse password")
    secure: bool = Field(False, description="TLS on the native protocol")
    target: Literal["local", "server"] = Field(
        "local", description="`local`: we start and stop the server; `server`: it is yours, we only connect"
    )
    db_prefix: str = Field("", description="put before every database name: isolates test runs")
    data_dir: Path = Field(
        REPOSITORY / ".marketprism", description="the local server's data, generated data, reports, models"
    )
    hot_ttl_days: int = Field(0, ge=0, description="days a hot raw row is kept after it was loaded")
    cold_ttl_days: int = Field(0, ge=0, description="days a cold raw row is kept after it was loaded")

    @field_validator("db_prefix")
    @classmethod
    def _plain_prefix(cls, value: str) -> str:
        if not re.fullmatch(r"([a-z][a-z0-9_]*)?", value):
            raise ValueError("MARKETPRISM_DB_PREFIX: lower-case letters, digits and _ only, e.g. `ci_`")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    def database(self, layer: Layer) -> str:
        """The full database name of a layer, prefix included."""
        return f"{self.db_prefix}marketprism_{layer}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once. Tests call `settings.cache_clear()` after changing the environment."""
    return Settings()
