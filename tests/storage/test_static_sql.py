"""Q1: nothing but text that stands in the source reaches the database as SQL."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CALLS = {"fetch", "fetchrow", "fetchval", "execute", "executemany", "cursor"}
PASSED_ON = {
    "lmserver/storage/database.py",  # the door itself
    "lmserver/storage/migrations.py",
    "lmserver/storage/embedded_postgres.py",
    "lmserver/storage/unprivileged.py",
}


def dynamic_sql(source: str) -> Iterator[int]:
    """Lines of calls whose statement is put together: formatted, added, or out of a function."""
    tree = ast.parse(source)
    static = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_text(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    static |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.For)
        and isinstance(node.target, ast.Name)
        and isinstance(node.iter, ast.Tuple)
        and all(map(_is_text, node.iter.elts))
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        statement = node.args[0]
        if node.func.attr in CALLS and not (
            _is_text(statement) or (isinstance(statement, ast.Name) and statement.id in static)
        ):
            yield node.lineno


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_q1_every_statement_stands_in_the_source() -> None:
    files = sorted((ROOT / "lmserver/storage").glob("*.py"))
    assert len(files) > 20
    for path in files:
        if str(path.relative_to(ROOT)) not in PASSED_ON:
            assert list(dynamic_sql(path.read_text(encoding="utf-8"))) == [], path


def test_q1_no_other_layer_has_statements() -> None:
    for path in sorted((ROOT / "lmserver").rglob("*.py")):
        if path.parent.name != "storage":
            assert not re.search(r"\bdb\.(?:fetch|execute)", path.read_text(encoding="utf-8")), path


def test_q1_the_lint_sees_what_it_is_for() -> None:
    """Its control: every way of putting a statement together, and the ways that are none."""
    bad = [
        'db.fetch(f"SELECT {x}")', 'db.execute("SELECT " + x)', 'db.execute("SELECT %s" % x)',
        'db.fetchval("SELECT {}".format(x))', 'db.fetchrow(sql(x))', 'x = f"{y}"\ndb.fetch(x)', 'db.fetch(" ".join(x))',
        'db.fetch(x[0])',
    ]  # fmt: skip
    good = ['db.fetch("SELECT " "1", x)', 'Q = "SELECT 1"\ndb.fetch(Q)', 'db.execute("A" if x else "B")']
    assert all(list(dynamic_sql(source)) for source in bad)
    assert not any(list(dynamic_sql(source)) for source in good)
