-- People who log in at OpenID providers, and how each session began.

-- How the person logged in: the name of a provider, or `password`.
ALTER TABLE sessions ADD COLUMN idp TEXT NOT NULL DEFAULT 'password';
-- How they proved who they are (`acr`); empty: not known.
ALTER TABLE sessions ADD COLUMN acr TEXT NOT NULL DEFAULT '';
-- Unix seconds: when they did (`auth_time`); 0: not known.
ALTER TABLE sessions ADD COLUMN auth_time BIGINT NOT NULL DEFAULT 0;
UPDATE sessions SET auth_time = created_at;

CREATE TABLE provider_people (
    -- The `iss` of the provider, and its `sub` for the person.
    issuer     TEXT   NOT NULL,
    subject    TEXT   NOT NULL,
    account    TEXT   NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    -- Unix seconds.
    created_at BIGINT NOT NULL,
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX provider_people_by_account ON provider_people (account);

-- Apart from the sessions themselves, which may be in Redis. A row goes when its session ends.
CREATE TABLE provider_sessions (
    -- The id of our session.
    session       TEXT   NOT NULL PRIMARY KEY,
    account       TEXT   NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    -- The generation of the account when the session began.
    generation    BIGINT NOT NULL,
    -- The name of the provider's section.
    idp           TEXT   NOT NULL,
    issuer        TEXT   NOT NULL,
    subject       TEXT   NOT NULL,
    -- The name of the session at the provider (`sid`); empty: none.
    sid           TEXT   NOT NULL,
    -- The provider's tokens, sealed.
    tokens        TEXT   NOT NULL,
    -- Unix seconds.
    created_at    BIGINT NOT NULL,
    -- Unix seconds: when the provider is to be asked again. NULL: it cannot be asked.
    due_at        BIGINT,
    -- Unix seconds: until then, one process is asking.
    claimed_until BIGINT NOT NULL
);
CREATE INDEX provider_sessions_by_due ON provider_sessions (due_at);
CREATE INDEX provider_sessions_by_person ON provider_sessions (issuer, subject);
