-- For a link that changes the address of its account: the new address, which its owner opens the link to prove.
ALTER TABLE mail_links ADD COLUMN new_email TEXT;
