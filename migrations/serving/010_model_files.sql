-- One row per file of a registered model, by its content. Written again, a file is only younger: `prune` spares the young.
CREATE TABLE IF NOT EXISTS model_files
(
    sha256 String COMMENT 'of content, 64 hex digits',
    content String CODEC(ZSTD(3)),
    created_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(created_at)
ORDER BY sha256;
