-- The language to write in, such as `en`; empty: the default.
ALTER TABLE mail_outbox ADD COLUMN language TEXT NOT NULL DEFAULT '';
