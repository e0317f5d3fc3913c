-- One row per model version that has scored: what its inputs are called. Written when it first stores a prediction.
CREATE TABLE IF NOT EXISTS scored_models
(
    model_version LowCardinality(String),
    model_name LowCardinality(String),
    model_type LowCardinality(String),
    relation LowCardinality(String) COMMENT 'what it reads: feature_vector_v1, sequence_inputs_v1 …',
    rows_read UInt16 COMMENT 'rows of one input, the latest last',
    max_gap_s Float64 COMMENT 'a longer silence between two of them blanks those before it',
    features Array(String) COMMENT 'of one row, in the order of the inputs',
    classes Array(Int8) COMMENT 'in the order of the probabilities',
    created_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (model_version, model_name);
