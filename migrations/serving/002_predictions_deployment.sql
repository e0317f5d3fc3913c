-- Which part a model played, and whether its answer was the one served.
ALTER TABLE predictions ADD COLUMN IF NOT EXISTS role Enum8('champion' = 1, 'challenger' = 2, 'baseline' = 3);
ALTER TABLE predictions ADD COLUMN IF NOT EXISTS served Bool;
ALTER TABLE predictions ADD COLUMN IF NOT EXISTS deployment UInt64;
ALTER TABLE predictions ADD COLUMN IF NOT EXISTS signal Int8;
ALTER TABLE predictions ADD COLUMN IF NOT EXISTS confidence Float32;
ALTER TABLE predictions ADD COLUMN IF NOT EXISTS fallback LowCardinality(String);
