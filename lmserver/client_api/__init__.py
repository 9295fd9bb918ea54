"""Requests of clients (Matrix Client-Server API): parse, hand to the engine, answer. No rules, no SQL."""
