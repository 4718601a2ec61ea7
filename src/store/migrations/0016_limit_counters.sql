-- Budgets of limits that replicas share. With SQLite, or with Redis, nothing is here.
CREATE TABLE limit_counters (
    -- The limit and the client or caller.
    name     TEXT     NOT NULL PRIMARY KEY,
    -- Unix nanoseconds of the database's clock: the theoretical arrival time of GCRA. Once it has passed, the row may go.
    tat      BIGINT   NOT NULL,
    -- 1: the last request had room.
    has_room SMALLINT NOT NULL
);
