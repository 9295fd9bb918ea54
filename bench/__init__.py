"""Load tests: what lmserver does in a second, beside stock Synapse on the same PostgreSQL."""
