-- 1: the session lasts as long as the browser is open. Its cookies have no lifetime of their own.
ALTER TABLE sessions ADD COLUMN until_closed SMALLINT NOT NULL DEFAULT 0;
