"""dbt's own commands work from the root, against a server named by env vars, and nothing of ours lacks its description."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from clickhouse_driver.errors import ServerException

from python_udfs import db
from python_udfs.dashboard.panels import snapshot
from python_udfs.exporter.collector import StoreCollector
from python_udfs.ingest.generator import GeneratedReader, tiny_market, write
from python_udfs.ingest.loader import load
from python_udfs.jobs.catalog import read_catalog
from python_udfs.settings import REPOSITORY, Settings
from tests.support import query

Node = dict[str, Any]


class Project:
    """The manifest's nodes of this project, and the catalog of what is in the database."""

    def __init__(self, manifest: dict[str, Any], catalog: dict[str, Any]) -> None:
        ours = [n for n in manifest["nodes"].values() if n["package_name"] == "marketprism"]
        self.models = {n["unique_id"]: n for n in ours if n["resource_type"] == "model"}
        self.seeds = {n["unique_id"]: n for n in ours if n["resource_type"] == "seed"}
        self.tests = [n for n in ours if n["resource_type"] == "test"]
        self.sources: dict[str, Node] = manifest["sources"]
        self.macros = {
            k: m
            for k, m in manifest["macros"].items()
            # a materialization is no macro that anybody calls, and takes no arguments
            if m["package_name"] == "marketprism" and not m["name"].startswith("materialization_")
        }
        self.exposures: dict[str, Node] = manifest["exposures"]
        self.unit_tests: dict[str, Node] = manifest["unit_tests"]
        self.tables: dict[str, Node] = {**catalog["nodes"], **catalog["sources"]}

    @property
    def relations(self) -> dict[str, Node]:
        return {**self.models, **self.seeds, **self.sources}


@pytest.fixture(scope="module")
def project(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """After build, test and docs as a user calls them."""
    market, target = (tmp_path_factory.mktemp(name) for name in ("market", "target"))
    write(tiny_market(), market / "tiny")
    load(GeneratedReader(market / "tiny"))
    places = {"DBT_TARGET_PATH": str(target), "DBT_LOG_PATH": str(target)}
    models = ("build", "--exclude-resource-type", "test", "unit_test")
    for words in (models, ("test",), ("docs", "generate")):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "dbt"), *words],
            cwd=REPOSITORY,
            env={**os.environ, "MARKETPRISM_TARGET": "server", **places},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
    assert query("select count() as n from feature_vector_v1")[0]["n"] > 50
    return Project(
        json.loads((target / "manifest.json").read_text()), json.loads((target / "catalog.json").read_text())
    )


def test_the_catalog_has_every_relation(project: Project) -> None:
    assert len(project.models) >= 27
    assert set(project.tables) == set(project.relations)


def test_every_relation_macro_exposure_and_unit_test_is_described(project: Project) -> None:
    everything = {**project.relations, **project.macros, **project.exposures, **project.unit_tests}
    assert [k for k, node in everything.items() if not node["description"].strip()] == []


def test_every_column_is_described(project: Project) -> None:
    missing = []
    for name, table in project.tables.items():
        columns = project.relations[name]["columns"]
        missing += [
            f"{name}.{c}" for c in table["columns"] if not columns.get(c, {}).get("description", "").strip()
        ]
    assert missing == []


def test_no_description_is_of_a_column_that_is_not_there(project: Project) -> None:
    for name, node in project.relations.items():
        assert set(node["columns"]) <= set(project.tables[name]["columns"]), name


def _is_merged_later(node: Node) -> bool:
    """A table that a materialized view and a backfill both write: the view that is read over it is unique."""
    config = node["config"]
    merging = ("Replacing", "Summing", "Aggregating")
    return config["materialized"] == "materialized_view" or str(config.get("engine")).startswith(merging)


def test_every_model_says_what_a_row_is_and_that_it_is_unique(project: Project) -> None:
    grains = {
        t["attached_node"]: t["test_metadata"]["kwargs"]["combination_of_columns"]
        for t in project.tests
        if t.get("test_metadata") and t["test_metadata"]["name"] == "unique_combination_of_columns"
    }
    for name, node in {**project.models, **project.seeds}.items():
        assert node["description"].startswith("One row per "), name
        if _is_merged_later(node):
            continue
        assert set(grains[name]) <= set(project.tables[name]["columns"]), name


def test_every_public_model_has_an_enforced_contract_and_every_model_a_group(project: Project) -> None:
    public = {k for k, node in project.models.items() if node["access"] == "public"}
    assert {"unified_buckets", "trade_flow", "feature_vector", "training_set"} <= {
        k.split(".")[2] for k in public
    }
    assert [k for k in public if not project.models[k]["contract"]["enforced"]] == []
    assert [k for k, node in project.models.items() if not node["config"]["group"]] == []
    first, second = (project.models[f"model.marketprism.feature_vector.v{v}"] for v in (1, 2))
    assert second["version"] == second["latest_version"] == 2
    assert first["deprecation_date"] is not None
    assert set(first["columns"]) < set(second["columns"])


def test_a_contract_says_the_type_that_the_database_has(project: Project) -> None:
    for name, node in project.models.items():
        if node["contract"]["enforced"]:
            types = {c: column["type"] for c, column in project.tables[name]["columns"].items()}
            assert {c: column["data_type"] for c, column in node["columns"].items()} == types, name


def test_every_argument_of_a_macro_is_described(project: Project) -> None:
    jinja = jinja2.Environment(extensions=["jinja2.ext.do"])
    for name, macro in project.macros.items():
        source = re.sub(r"{%(-?) test (\w+)", r"{%\1 macro test_\2", macro["macro_sql"])
        source = re.sub(r"{% materialization (\w+), adapter='clickhouse' %}", r"{% macro \1() %}", source)
        source = re.sub("endtest|endmaterialization", "endmacro", source)
        (definition,) = jinja.parse(source).find_all(jinja2.nodes.Macro)
        described = {a["name"]: a["description"] for a in macro["arguments"]}
        assert list(described) == [a.name for a in definition.args], name
        assert all(described.values()), name


def test_one_yml_beside_each_model() -> None:
    models = REPOSITORY / "dbt_project" / "models"
    stems = {re.sub(r"_v\d+$", "", str(path.with_suffix(""))) for path in models.rglob("*.sql")}
    assert {stem for stem in stems if not (models / f"{stem}.yml").is_file()} == set()


# What a row of a feature model is about and when it is known; and what a UDF said, which is no feature.
NOT_A_FEATURE = {
    "exchange",
    "market_type",
    "symbol",
    "bucket_id",
    "bucket_ts_start",
    "bucket_ts_end",
    "known_at",
    "udf_error",
    # keys of minutes and of events
    "minute_start",
    "timestamp",
    "is_book",
    "event_seq",
    "event_text_id",
    "is_ask",
}


def test_parity_covers_every_relation_that_a_model_can_read(project: Project) -> None:
    served = {k for k, n in project.models.items() if n["fqn"][1] == "serving" and n["version"] is not None}
    parity = project.models["model.marketprism.feature_parity_rows"]
    assert len(served) >= 3
    assert served <= set(parity["depends_on"]["nodes"])


def test_the_feature_catalogue_equals_the_models_columns(project: Project) -> None:
    models = [
        m for m in project.models.values() if m["path"].startswith("features/") and m["access"] == "public"
    ]
    columns = {(m["name"], c) for m in models for c in m["columns"] if c not in NOT_A_FEATURE}
    listed = [(f.family, f.name) for f in read_catalog()]
    assert len(listed) == len(set(listed))
    assert (sorted(columns - set(listed)), sorted(set(listed) - columns)) == ([], [])


def test_the_catalogue_names_what_it_is_made_of(project: Project) -> None:
    kinds = {s["name"] for s in project.sources.values()}
    for feature in read_catalog():
        assert set(feature.source.split("+")) <= kinds, feature
        assert all([feature.formula, feature.unit, feature.owner]), feature


def test_every_family_has_an_oracle_test(project: Project) -> None:
    oracles = [p.read_text() for p in (REPOSITORY / "tests" / "oracles").glob("*.py")]
    tests = [p.read_text() for p in (REPOSITORY / "tests" / "integration").glob("test_*.py")]
    with_oracle = "\n".join([*oracles, *(t for t in tests if "tests.oracles" in t)])
    names: dict[str, set[str]] = {}
    for feature in read_catalog():
        names.setdefault(feature.family, {feature.family}).add(feature.name)
    missing = [f for f, some in names.items() if not any(re.search(rf"\b{n}\b", with_oracle) for n in some)]
    assert missing == []


def test_what_people_watch_can_be_asked_of_a_built_store(project: Project, module_store: Settings) -> None:
    prefix = module_store.db_prefix
    relations = {(n["schema"], n.get("alias") or n["name"]) for n in project.relations.values()}
    with db.connect() as c:
        for page in (REPOSITORY / "docs" / "runbook").glob("*.md"):
            for sql in re.findall(r"```sql\n(.+?)```", page.read_text(), re.DOTALL):
                assert set(re.findall(r"(marketprism_\w+)\.(\w+)", sql)) <= {
                    (s.removeprefix(prefix), t) for s, t in relations
                }, page
                try:
                    c.execute(re.sub(r"\bmarketprism_(?=\w+\.)", f"{prefix}marketprism_", sql))
                except ServerException as e:
                    raise AssertionError(f"{page.name}: {e.message}") from e
    panels = snapshot().panels
    assert {
        k: p.problem for k, p in panels.items() if p.problem and not p.problem.startswith("Not there yet")
    } == {}
    exported = {
        (s.name, s.labels.get("relation")): s.value for f in StoreCollector(60).collect() for s in f.samples
    }
    assert exported["marketprism_up", None] == 1
    assert [key for key, bad in exported.items() if key[0].endswith("unreadable") and bad] == []
    missing = {key[1] for key, bad in exported.items() if key[0].endswith("missing") and bad}
    assert missing & {table for _, table in relations} == set()
