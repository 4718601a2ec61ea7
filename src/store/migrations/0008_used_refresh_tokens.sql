-- Refresh tokens that were used a moment ago: who repeats one gets its successor again.
CREATE TABLE used_refresh_tokens (
    session TEXT   NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    -- Which of the session's tokens.
    counter BIGINT NOT NULL,
    -- Unix milliseconds.
    used_at BIGINT NOT NULL,
    PRIMARY KEY (session, counter)
);
