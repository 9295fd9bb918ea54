"""PostgreSQL: the only importer of asyncpg, the only home of SQL.

One module for each family of tables, one small function for each query, frozen dataclasses out.
"""
