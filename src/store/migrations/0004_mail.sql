-- What is to be mailed, and the links in it.
CREATE TABLE mail_outbox (
    -- What: `reset`, `verify`, `changed` or `exists`.
    kind         TEXT   NOT NULL,
    -- To whom, in its one form. Whether it has an account is looked up when it is sent, not when it is asked for.
    email        TEXT   NOT NULL,
    -- Unix seconds.
    requested_at BIGINT NOT NULL,
    next_at      BIGINT NOT NULL,
    attempts     BIGINT NOT NULL,
    -- How often it was asked for while it waited.
    asked        BIGINT NOT NULL,
    PRIMARY KEY (kind, email)
);
CREATE INDEX mail_outbox_by_time ON mail_outbox (next_at);

CREATE TABLE mail_links (
    -- SHA-256 of the token, which stands in the mail and nowhere else.
    digest     TEXT   NOT NULL PRIMARY KEY,
    -- For what: `reset` or `verify`.
    purpose    TEXT   NOT NULL,
    account    TEXT   NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    -- The account's when the link was made: it is good for that account as it was.
    email      TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT
);
CREATE INDEX mail_links_by_account ON mail_links (account, purpose, created_at);
CREATE INDEX mail_links_by_age ON mail_links (expires_at);
