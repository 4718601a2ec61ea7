-- Access tokens that are refused before they expire.
CREATE TABLE revocations (
    -- By what: `jti`, `sid` or `subject`.
    kind       TEXT   NOT NULL,
    value      TEXT   NOT NULL,
    -- Of whom: `*` is every issuer's; otherwise `=` and the `iss`, which is empty for tokens without one.
    scope      TEXT   NOT NULL,
    -- Unix seconds; of a subject, the cut-off.
    revoked_at BIGINT NOT NULL,
    -- Grows with each write: who follows the table asks for what is above the last one seen. The row with the highest is never
    -- deleted, so that no number is given twice.
    seq        BIGINT NOT NULL UNIQUE,
    PRIMARY KEY (kind, value, scope)
);
CREATE INDEX revocations_by_age ON revocations (revoked_at);
