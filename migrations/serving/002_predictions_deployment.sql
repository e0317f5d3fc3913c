-- Which part a model played in the deployment, which prediction counts, and what it says to do.
ALTER TABLE predictions
    ADD COLUMN IF NOT EXISTS role Enum8('champion' = 1, 'challenger' = 2, 'baseline' = 3),
    ADD COLUMN IF NOT EXISTS served Bool COMMENT 'the one prediction of the request and instrument that counts',
    ADD COLUMN IF NOT EXISTS deployment UInt64 COMMENT 'sequence of the deployment; 0: a model folder',
    ADD COLUMN IF NOT EXISTS signal Int8 COMMENT 'the likeliest class if it is likely enough, else 0',
    ADD COLUMN IF NOT EXISTS confidence Float32 COMMENT 'the largest probability',
    ADD COLUMN IF NOT EXISTS fallback LowCardinality(String) COMMENT 'of a served row: baseline (it stands in), none (no signal) or empty';
