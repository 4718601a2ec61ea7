-- The path on this site to go on to after the mailed link; empty: none.
ALTER TABLE mail_outbox ADD COLUMN return_to TEXT NOT NULL DEFAULT '';
