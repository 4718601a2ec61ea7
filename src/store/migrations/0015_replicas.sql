-- Gateways that share the database. With SQLite, files next to it say this instead.
CREATE TABLE replicas (
    -- Random, made at start.
    id               TEXT   NOT NULL PRIMARY KEY,
    -- The numbers of the last revocation and the last signing key that it has read.
    revocations_read BIGINT NOT NULL,
    keys_read        BIGINT NOT NULL,
    -- Unix seconds of the database's clock.
    seen_at          BIGINT NOT NULL
);
