-- What commands did to accounts, until a gateway has written it to its log.

CREATE TABLE command_events (
    id       TEXT   NOT NULL PRIMARY KEY,
    -- Unix seconds.
    done_at  BIGINT NOT NULL,
    -- The message in the log.
    event    TEXT   NOT NULL,
    -- The id of the account, which may be deleted; empty: several accounts.
    account  TEXT   NOT NULL,
    -- How many accounts.
    accounts BIGINT NOT NULL,
    -- The user of the machine who ran the command.
    uid      BIGINT NOT NULL
);
CREATE INDEX command_events_by_time ON command_events (done_at, id);
