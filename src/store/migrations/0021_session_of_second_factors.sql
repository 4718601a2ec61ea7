-- The session that began to set a second factor up: no other one may confirm it. Empty: not known.
ALTER TABLE second_factors ADD COLUMN session TEXT NOT NULL DEFAULT '';
