"""The suite in full against a real server, over TLS, as its operator would run it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.cli import main
from lmserver.conformance import checks
from tests.kit.processes import ServerProcess, configure, free_port, lmserver
from tests.kit.proxies import HAPROXY, Haproxy, Proxy, front

LONG = os.environ.get("LMSERVER_DRILLS") == "long"
KNOWN_FAILURES = set() if HAPROXY else {"tls.http2"}
"""The listener itself speaks HTTP/1.1: what the draft asks for comes from the proxy in front of it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """As an operator serves it, behind docs/haproxy.cfg.example; without HAProxy by itself."""
    folder = tmp_path_factory.mktemp("conformance")
    made: ServerProcess
    proxy: Proxy | None = None
    if HAPROXY is None:
        made = configure(folder, "server")
    else:
        made, proxy = front(Haproxy, folder, "server")
    asyncio.run(made.start())
    if proxy is not None:
        asyncio.run(proxy.start())
    yield made
    if proxy is not None:
        proxy.stop()
    made.stop()


def arguments(server: ServerProcess, *more: str) -> list[str]:
    names = [f"localhost:{free_port()}" for _ in range(3)]
    return [
        "conformance", server.name, "--as", names[0], "--also", names[1], "--also", names[2],
        "--dev", str(server.config.parent / "ca"), "--client-url", server.client_url, "--register", *more,
    ]  # fmt: skip


def outcomes(report: dict[str, Any], outcome: str) -> set[str]:
    return {check["id"] for check in report["checks"] if check["outcome"] == outcome}


# The form peers speak today in full; of the stable form, unless asked, what differs in paths and version.
FORMS = {
    "unstable": (),
    "stable": () if LONG else ("join.*", "canonical.*", "event.*", "backfill.*", "invited.*"),
}


@pytest.mark.parametrize("form", FORMS)
def test_lmserver_conforms_as_hub_and_as_participant(
    server: ServerProcess, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "report.json"
    only = [word for pattern in FORMS[form] for word in ("--only", pattern)]
    stable = ["--stable"] if form == "stable" else []
    done = lmserver(*arguments(server, "--verbose", "--json", str(file), *stable, *only))
    report = json.loads(file.read_text(encoding="utf-8"))
    ran = {check["id"] for check in report["checks"]}
    assert outcomes(report, "fail") == KNOWN_FAILURES & ran, done.stdout
    assert outcomes(report, "warn") == set(), done.stdout
    assert outcomes(report, "skip") == set(), done.stdout
    assert ran == {check.id for check in checks.ALL} or only
    assert report["form"] == form
    assert done.returncode == (1 if KNOWN_FAILURES & ran else 0)


def test_a_run_without_failures_exits_0(server: ServerProcess) -> None:
    done = lmserver(*arguments(server, "--only", "keys.*", "--strict"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout


def test_what_cannot_run_exits_2(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"localhost:{free_port()}"
    for wrong in (
        ["conformance"],
        ["conformance", server.name, "--as", name],
        ["conformance", server.name, "--as", "127.0.0.1/x", "--plain-http"],
        ["conformance", f"localhost:{free_port()}", "--as", name, "--plain-http"],
        ["conformance", "no-such-server.invalid", "--as", name, "--plain-http"],
        [*arguments(server), "--only", "no.such.check"],
        [*arguments(server), "--client-token", "x"],
        [*arguments(server), "--listen", server.name],
    ):
        assert main(wrong) == 2, wrong
        assert capsys.readouterr().err.startswith("conformance: "), wrong


def test_the_list_names_every_check_with_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--list"]) == 0
    listed = capsys.readouterr().out
    for check in checks.ALL:
        assert check.id in listed and check.section in listed


def test_every_check_stands_under_a_section_of_the_draft() -> None:
    from tests.test_docs import SECTIONS

    known = {" ".join(name.split()) for name in SECTIONS.split(";")}
    assert {check.section for check in checks.ALL} <= known
