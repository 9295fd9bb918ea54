"""Requests of other servers: authenticate, parse, hand to the engine, answer. No rules, no SQL."""
