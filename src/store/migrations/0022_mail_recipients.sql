-- How many links were mailed to an address lately, whatever becomes of the account: a row for each.
CREATE TABLE mail_recipients (
    -- The address, as HMAC-SHA256 under a key that is not in the database.
    recipient TEXT   NOT NULL,
    -- For what: `reset`, `verify` or `change`.
    purpose   TEXT   NOT NULL,
    -- Unix seconds.
    sent_at   BIGINT NOT NULL
);
CREATE INDEX mail_recipients_by_address ON mail_recipients (recipient, purpose, sent_at);
CREATE INDEX mail_recipients_by_age ON mail_recipients (sent_at);
-- They were counted by this before.
DROP INDEX mail_links_by_new_email;
