-- Personal access tokens, for programs that cannot log in through a browser.
CREATE TABLE personal_tokens (
    -- Random: the `jti` of what the token proves.
    id           TEXT   NOT NULL PRIMARY KEY,
    account      TEXT   NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name         TEXT   NOT NULL,
    -- SHA-256 of the token, which is shown once and kept nowhere.
    digest       TEXT   NOT NULL UNIQUE,
    -- Separated by spaces. NULL: all roles of the account.
    roles        TEXT,
    -- Unix seconds.
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    -- Unix seconds: the start of the day, in UTC.
    last_used_at BIGINT,
    -- Unix seconds. The row is kept for a while, so that a refusal can say why.
    revoked_at   BIGINT
);
CREATE UNIQUE INDEX personal_tokens_by_name ON personal_tokens (account, name) WHERE revoked_at IS NULL;
CREATE INDEX personal_tokens_by_age ON personal_tokens (expires_at);
