-- Who may do what. ${PREFIX} is MARKETPRISM_DB_PREFIX. A user gets a role by `grant ${PREFIX}marketprism_reader to anna`, with
-- `set default role all to anna`. The local server takes the same grants and limits into its users.xml (python_udfs/access.py).
CREATE ROLE IF NOT EXISTS ${PREFIX}marketprism_reader;
CREATE ROLE IF NOT EXISTS ${PREFIX}marketprism_scorer;
CREATE ROLE IF NOT EXISTS ${PREFIX}marketprism_ingester;
CREATE ROLE IF NOT EXISTS ${PREFIX}marketprism_monitor;
CREATE ROLE IF NOT EXISTS ${PREFIX}marketprism_admin;

-- Analysts: features, labels, monitoring. Not the staging views: they show raw rows.
GRANT SELECT ON ${PREFIX}marketprism_features.* TO ${PREFIX}marketprism_reader;
REVOKE SELECT ON ${PREFIX}marketprism_features.stg_* FROM ${PREFIX}marketprism_reader;

-- The scorer: what models read, the models and their deployment, the state of the instruments. It writes what it said.
GRANT SELECT ON ${PREFIX}marketprism_features.feature_vector* TO ${PREFIX}marketprism_scorer;
GRANT SELECT ON ${PREFIX}marketprism_features.sequence_inputs* TO ${PREFIX}marketprism_scorer;
GRANT SELECT ON ${PREFIX}marketprism_features.instrument_states TO ${PREFIX}marketprism_scorer;
GRANT SELECT ON ${PREFIX}marketprism_serving.models TO ${PREFIX}marketprism_scorer;
GRANT SELECT ON ${PREFIX}marketprism_serving.model_files TO ${PREFIX}marketprism_scorer;
GRANT SELECT ON ${PREFIX}marketprism_serving.deployments TO ${PREFIX}marketprism_scorer;
GRANT INSERT ON ${PREFIX}marketprism_serving.predictions TO ${PREFIX}marketprism_scorer;
GRANT INSERT ON ${PREFIX}marketprism_serving.prediction_inputs TO ${PREFIX}marketprism_scorer;
GRANT INSERT ON ${PREFIX}marketprism_serving.scored_models TO ${PREFIX}marketprism_scorer;
GRANT INSERT ON ${PREFIX}marketprism_serving.job_runs TO ${PREFIX}marketprism_scorer;

-- Ingest: adds raw rows, and reads them to add none twice. A load's own tables are `_load_*`; it replaces its lines in quarantine.
GRANT SELECT, INSERT ON ${PREFIX}marketprism_hot.* TO ${PREFIX}marketprism_ingester;
GRANT CREATE TABLE, DROP TABLE ON ${PREFIX}marketprism_hot._load_* TO ${PREFIX}marketprism_ingester;
GRANT ALTER DELETE ON ${PREFIX}marketprism_hot.quarantine TO ${PREFIX}marketprism_ingester;
-- The live views run as the one who inserts, and filter by this seed.
GRANT SELECT ON ${PREFIX}marketprism_features.source_availability TO ${PREFIX}marketprism_ingester;
GRANT TABLE ENGINE ON MergeTree TO ${PREFIX}marketprism_ingester;
GRANT INSERT ON ${PREFIX}marketprism_serving.job_runs TO ${PREFIX}marketprism_ingester;
-- It skips what was archived.
GRANT SELECT ON ${PREFIX}marketprism_cold.* TO ${PREFIX}marketprism_ingester;

-- Exporter, dashboard and quality: what they show, how far the trades have come, and the row of a quality run.
GRANT SELECT ON ${PREFIX}marketprism_features.* TO ${PREFIX}marketprism_monitor;
REVOKE SELECT ON ${PREFIX}marketprism_features.stg_* FROM ${PREFIX}marketprism_monitor;
GRANT SELECT ON ${PREFIX}marketprism_serving.predictions TO ${PREFIX}marketprism_monitor;
GRANT SELECT ON ${PREFIX}marketprism_serving.deployments TO ${PREFIX}marketprism_monitor;
GRANT SELECT ON ${PREFIX}marketprism_serving.job_runs TO ${PREFIX}marketprism_monitor;
GRANT SELECT, INSERT ON ${PREFIX}marketprism_serving.quality_runs TO ${PREFIX}marketprism_monitor;
GRANT SELECT(timestamp) ON ${PREFIX}marketprism_hot.trades TO ${PREFIX}marketprism_monitor;

-- Migrations, dbt, models, repair: everything in the four databases, and nothing outside but what names and watches them.
GRANT ALL ON ${PREFIX}marketprism_hot.* TO ${PREFIX}marketprism_admin;
GRANT ALL ON ${PREFIX}marketprism_cold.* TO ${PREFIX}marketprism_admin;
GRANT ALL ON ${PREFIX}marketprism_features.* TO ${PREFIX}marketprism_admin;
GRANT ALL ON ${PREFIX}marketprism_serving.* TO ${PREFIX}marketprism_admin;
GRANT SELECT ON system.* TO ${PREFIX}marketprism_admin;
GRANT CREATE TEMPORARY TABLE, SYSTEM FLUSH LOGS, CLUSTER, REMOTE ON *.* TO ${PREFIX}marketprism_admin;
GRANT TABLE ENGINE ON * TO ${PREFIX}marketprism_admin;

-- What an analyst's query may take. READONLY: not to be raised by the query itself; other settings are free (readonly = 2).
CREATE SETTINGS PROFILE IF NOT EXISTS ${PREFIX}marketprism_reader SETTINGS
    readonly = 2,
    max_execution_time = 60 READONLY,
    max_memory_usage = 4000000000 READONLY,
    max_memory_usage_for_user = 8000000000 READONLY,
    max_bytes_to_read = 100000000000 READONLY,
    max_result_bytes = 1000000000 READONLY,
    max_concurrent_queries_for_user = 8 READONLY
TO ${PREFIX}marketprism_reader;
