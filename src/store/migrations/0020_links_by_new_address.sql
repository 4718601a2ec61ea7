-- How many links were mailed to an address that an account is to get.
CREATE INDEX mail_links_by_new_email ON mail_links (new_email, created_at) WHERE new_email IS NOT NULL;
