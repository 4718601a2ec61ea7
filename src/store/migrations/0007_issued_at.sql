-- Unix seconds: the latest `iat` of any access token of the account. What ends its tokens has a cut-off at or after it.
ALTER TABLE accounts ADD COLUMN issued_at BIGINT NOT NULL DEFAULT 0;
-- An earlier version may have issued one past the last cut-off.
UPDATE accounts SET issued_at = not_before + 1;
