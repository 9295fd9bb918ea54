"""A page for operators at /admin: server-rendered, without scripts, off unless configured."""
