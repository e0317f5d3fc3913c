-- A program sends a float32 array as its bytes: the server unpacks them faster than the driver packs an array.
ALTER TABLE prediction_inputs
    ADD COLUMN IF NOT EXISTS packed String EPHEMERAL COMMENT 'little-endian float32; becomes inputs',
    MODIFY COLUMN inputs Array(Float32) DEFAULT reinterpret(packed, 'Array(Float32)')
        COMMENT 'row by row, the oldest first; NaN: missing' CODEC(ZSTD(3));
