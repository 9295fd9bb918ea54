"""Run by test_logs in a process of its own: a listener with its log, under attack by whoever fills logs."""

from __future__ import annotations

import asyncio
import logging
import sys

import structlog

from lmserver import logs
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import DISPATCHER, build_app
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.listener import Capacity, Listener

HOSTILE = [
    "a\r\nb",
    "\x1b[31mred\x1b[0m",
    "x\u2028y\u2029z\x85",
    "%s%n{}{0}",
    "\0",
    "\u202egnp",
    "x" * 100_000,
]
STORM = 300


class Endpoints:
    """One that fails as no input should make it, one that works."""

    @endpoint("GET", "/fails/{what}", auth=Auth.NONE)
    async def fails(self, request: Request) -> dict[str, str]:
        """Says in its log what it was asked."""
        structlog.get_logger().warning(
            "hostile", user_id=request.params["what"], agent=request.headers.get("User-Agent")
        )
        raise ValueError(request.params["what"])

    @endpoint("GET", "/works", auth=Auth.NONE)
    async def works(self, request: Request) -> dict[str, str]:
        """Nothing."""
        return {}


async def say(port: int, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    await reader.read(1000)
    writer.transport.abort()


async def main(kind: str) -> None:
    logs.configure("INFO", kind)
    listener = Listener(
        build_app([Endpoints()], {})[DISPATCHER], Capacity(1000), TrustedProxies(), shutdown_seconds=0.1
    )
    port = await listener.start("127.0.0.1", 0)
    for text in HOSTILE:
        structlog.get_logger().info("hostile", text=text, number=1)
        logging.getLogger("library").warning("said %r and %s", text, text)
    await say(
        port, b"GET /fails/a%0D%0Ab%1B HTTP/1.1\r\nHost: x\r\nUser-Agent: \xc2\x9b31m\xe2\x80\xa8 \r\n\r\n"
    )
    print("STORM", flush=True)
    cookie = b"Cookie: " + b"; ".join(b"{%d}[]\x01=;" % n for n in range(500))
    storm = [
        b"GET /works HTTP/1.1\r\nHost: x\r\n" + cookie + b"\r\n\r\n",
        b"GET /works HTTP/1.1\r\nHost: x\r\nCookie: " + b"{}@=1; " * 1000 + b"\r\n\r\n",
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET /works HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ]
    for n in range(STORM):
        await say(port, storm[n % len(storm) if n < 50 else 3])
    await listener.close()


asyncio.run(main(sys.argv[1]))
