-- The browser or program, and the address, of the login that a notice is about; otherwise empty.
ALTER TABLE mail_outbox ADD COLUMN login TEXT NOT NULL DEFAULT '';
