"""Talking to other servers: finding them, asking them, and knowing their keys."""
