-- One row per registration of a model, and per pruning of one: the last row of a name and version counts.
-- A registration writes its files first and this row last: without the row there is no model.
CREATE TABLE IF NOT EXISTS models
(
    model_name LowCardinality(String),
    model_version String COMMENT 'sha256 of the ONNX file, first 12 hex digits',
    available Bool COMMENT 'false: its files were pruned',
    card String COMMENT 'JSON, as in card.json',
    files Map(String, String) COMMENT 'file name -> sha256',
    who String,
    at DateTime64(6, 'UTC'),
    model_type LowCardinality(String) MATERIALIZED JSONExtractString(card, 'type'),
    source LowCardinality(String) MATERIALIZED JSONExtractString(card, 'source') COMMENT 'public relation it reads',
    feature_vector_version UInt16 MATERIALIZED JSONExtractUInt(card, 'feature_vector_version') COMMENT 'of source',
    metrics String MATERIALIZED JSONExtractRaw(card, 'pooled') COMMENT 'JSON: out of sample, over all folds'
)
ENGINE = MergeTree
ORDER BY (model_name, model_version, at);
