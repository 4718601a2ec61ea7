-- Codes that some accounts need beside their password.
CREATE TABLE second_factors (
    account       TEXT   NOT NULL PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
    -- Sealed.
    secret        TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    -- Until then no login asks for a code.
    confirmed_at  BIGINT,
    -- The time step of the last code that was taken: none is taken twice, nor one before it.
    last_step     BIGINT NOT NULL,
    -- Wrong codes in a row, and until when none is looked at after too many.
    failures      BIGINT NOT NULL,
    blocked_until BIGINT NOT NULL
);

CREATE TABLE recovery_codes (
    account TEXT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    -- A keyed hash of the code. The row goes when it is used.
    digest  TEXT NOT NULL,
    PRIMARY KEY (account, digest)
);
