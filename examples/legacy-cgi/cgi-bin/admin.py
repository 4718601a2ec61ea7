#!/usr/bin/env python3
"""An admin script. It checks nothing: the gateway admits only admins."""

import os

print("Content-Type: text/plain; charset=utf-8")
print()
print(f"hello {os.environ.get('HTTP_X_AUTH_USER', '')}, this is the admin script at {os.environ.get('PATH_INFO') or '/'}")
