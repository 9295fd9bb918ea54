"""The command against a server as operators run them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.kit.postgres import Cluster
from tests.kit.processes import configure, lmserver


async def test_one_server_checks_another_with_its_own_key(tmp_path: Path, cluster: Cluster) -> None:
    async with cluster.database() as first, cluster.database() as second:
        asked = configure(tmp_path, "asked", database={"url": first})
        asking = configure(tmp_path, "asking", database={"url": second})
        await asyncio.gather(asked.start(), asking.start())
        try:
            done = await asyncio.to_thread(
                lmserver, "federation-check", asked.name, "--config", str(asking.config)
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"as {asking.name}: believed" in done.stdout
            assert "lmserver" in done.stdout and "TLSv1.3" in done.stdout
            bare = await asyncio.to_thread(lmserver, "federation-check", asked.name, "--json")
            report = json.loads(bare.stdout)
            assert (bare.returncode, report["ok"]) == (1, False)
            assert report["steps"][-1]["name"] == "address"  # loopback is private
        finally:
            assert (asked.stop(), asking.stop()) == (0, 0)


def test_a_missing_configuration_is_told(tmp_path: Path) -> None:
    done = lmserver("federation-check", "example.org", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert "cannot be read" in done.stderr and not done.stdout
