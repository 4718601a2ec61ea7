#!/usr/bin/env python3
"""Prints the caller that the gateway reports."""

import os
import urllib.parse

# The gateway percent-encodes characters that a header field cannot contain.
user = urllib.parse.unquote(os.environ.get("HTTP_X_AUTH_USER", ""))
roles = [urllib.parse.unquote(role) for role in os.environ.get("HTTP_X_AUTH_ROLES", "").split(",") if role]

print("Content-Type: text/plain; charset=utf-8")
print()
print(f"user:   {user or 'nobody'}")
print(f"roles:  {', '.join(roles) or 'none'}")
print(f"client: {os.environ.get('HTTP_X_FORWARDED_FOR', '')}")
