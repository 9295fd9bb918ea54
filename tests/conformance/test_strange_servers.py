"""What the suite makes of servers that answer nothing sensible: a full report, and no crash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from lmserver.conformance import checks
from lmserver.conformance.model import Outcome
from lmserver.conformance.options import Options
from lmserver.conformance.runner import CannotRun, run
from tests.kit.processes import free_port

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def html(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=404, text="<h1>Not here</h1>", content_type="text/html")


async def lists(request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response([None, {"server_keys": 7}])


async def numbers(request: web.BaseRequest) -> web.StreamResponse:
    names = ("verify_keys", "server_keys", "signatures", "event", "state", "pdus", "failed_pdus", "room_id")
    return web.json_response(dict.fromkeys(names, 7))


async def failing(request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"errcode": "M_UNKNOWN", "error": "\x1b[2J"}, status=500)


async def hanging_up(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    if request.path != "/_matrix/key/v2/server":
        request.transport.abort()
    return web.json_response({})


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Options]:
    port = free_port()
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    names = [f"localhost:{free_port()}" for _ in range(3)]
    try:
        yield Options(
            server=f"localhost:{port}", name=names[0], also=tuple(names[1:]), plain_http=True,
            room=f"!room:localhost:{port}", user=f"@user:localhost:{port}",
        )  # fmt: skip
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("handler", [html, lists, numbers, failing, hanging_up])
async def test_a_strange_server_gets_a_full_report(handler: Handler) -> None:
    async with serving(handler) as options:
        results = await run(options, lambda result: None)
    assert len(results) == len(checks.ALL)
    outcomes = [result.outcome for result in results]
    assert outcomes.count(Outcome.FAIL) > 20
    assert outcomes.count(Outcome.PASS) < 20, [r.check.id for r in results if r.outcome is Outcome.PASS]
    assert all(result.detail for result in results if result.outcome is not Outcome.PASS)


async def test_a_client_api_that_is_none_is_told_before_anything_runs() -> None:
    async with serving(html) as options:
        url = f"http://{options.server}"
        with pytest.raises(CannotRun, match="client API"):
            await run(
                Options(
                    server=options.server, name=options.name, plain_http=True, client_url=url, register=True
                ),
                lambda result: None,
            )
