-- Why a model was not served, what each stage may take, and what a replay needs. Budgets in microseconds.
ALTER TABLE predictions
    ADD COLUMN IF NOT EXISTS unusable LowCardinality(String) COMMENT 'why this model must not be served here: stale, missing, both; empty: it may',
    ADD COLUMN IF NOT EXISTS fallback_reason LowCardinality(String) COMMENT 'of a row with a fallback: what was wrong with the model whose turn it was',
    ADD COLUMN IF NOT EXISTS threshold Float32 COMMENT 'confidence below which the signal is 0',
    ADD COLUMN IF NOT EXISTS read_budget_us UInt64,
    ADD COLUMN IF NOT EXISTS prepare_budget_us UInt64,
    ADD COLUMN IF NOT EXISTS run_budget_us UInt64,
    ADD COLUMN IF NOT EXISTS total_budget_us UInt64,
    ADD COLUMN IF NOT EXISTS over_budget Array(LowCardinality(String)) COMMENT 'the stages that took longer: read, prepare, run, total',
    ADD COLUMN IF NOT EXISTS last_write_us UInt64 COMMENT 'what storing the call before this one took; 0: the first call',
    ADD COLUMN IF NOT EXISTS place UInt16 COMMENT 'row of the batch, from 0',
    ADD COLUMN IF NOT EXISTS batch_size UInt16 COMMENT 'rows of the one model run',
    ADD COLUMN IF NOT EXISTS runtime LowCardinality(String) COMMENT 'ONNX runtime and its version',
    ADD COLUMN IF NOT EXISTS threads UInt8 COMMENT 'threads of the model run',
    ADD INDEX IF NOT EXISTS requests request_id TYPE bloom_filter GRANULARITY 4;
