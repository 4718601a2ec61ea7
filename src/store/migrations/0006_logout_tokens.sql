-- Logout tokens that were received: each counts once, after a restart and for every process that has this database open.
CREATE TABLE logout_tokens (
    -- SHA-256 of its issuer and its `jti`.
    name    TEXT   NOT NULL PRIMARY KEY,
    -- Unix seconds. From then on it is refused by its time, and the row is of no more use.
    over_at BIGINT NOT NULL
);
CREATE INDEX logout_tokens_by_time ON logout_tokens (over_at);
