-- For how many seconds gateways had run on this database when the row was last written (the fact `running_seconds`). It tells the
-- age of a revocation without the time of day, which jumps when a clock is set.
ALTER TABLE revocations ADD COLUMN noted_at BIGINT NOT NULL DEFAULT 0;
