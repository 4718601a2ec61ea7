-- The built-in issuer: who may log in, who is logged in, and what tokens are signed with.

CREATE TABLE accounts (
    id             TEXT     NOT NULL PRIMARY KEY,
    -- In its one form.
    email          TEXT     NOT NULL UNIQUE,
    name           TEXT,
    -- A PHC string (argon2id), or an imported bcrypt hash.
    password       TEXT     NOT NULL,
    -- Separated by spaces.
    roles          TEXT     NOT NULL,
    disabled       SMALLINT NOT NULL,
    email_verified SMALLINT NOT NULL,
    -- Grows when every session of the account ends: a session of an older generation is over.
    generation     BIGINT   NOT NULL,
    -- Unix seconds. Access tokens issued then or before are revoked: new ones are issued later.
    not_before     BIGINT   NOT NULL,
    created_at     BIGINT   NOT NULL,
    last_login_at  BIGINT
);

CREATE TABLE sessions (
    id         TEXT     NOT NULL PRIMARY KEY,
    account    TEXT     NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    generation BIGINT   NOT NULL,
    -- The one refresh token that is good next. Nothing of the token itself is kept.
    counter    BIGINT   NOT NULL,
    created_at BIGINT   NOT NULL,
    -- Unix milliseconds: when `counter` last grew.
    rotated_at BIGINT   NOT NULL,
    -- From where it was used last.
    address    TEXT     NOT NULL,
    user_agent TEXT     NOT NULL,
    ended_at   BIGINT
);
CREATE INDEX sessions_by_account ON sessions (account);
CREATE INDEX sessions_by_age ON sessions (rotated_at);

CREATE TABLE signing_keys (
    -- One after the other: of two processes that make the next key, one does.
    number     BIGINT NOT NULL PRIMARY KEY,
    kid        TEXT   NOT NULL UNIQUE,
    algorithm  TEXT   NOT NULL,
    -- PKCS#8 as PEM, sealed.
    private    TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    -- Unix seconds: it signs from then until the next one does.
    signs_from BIGINT NOT NULL
);
