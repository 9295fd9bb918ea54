"""matrix-js-sdk, unmodified from npm, in Node on two federated servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.clients.node import Node
from tests.clients.pictures import lighthouse
from tests.kit.processes import ServerProcess

Servers = tuple[ServerProcess, ServerProcess]


def urls(servers: Servers) -> list[str]:
    return [server.client_url for server in servers]


def test_accounts_are_made_proven_changed_and_closed(servers: Servers, node: Node) -> None:
    node.run("account.mjs", servers=urls(servers))


def test_edits_reactions_receipts_pictures_and_knocking(servers: Servers, node: Node) -> None:
    answer = node.run("conversation.mjs", servers=urls(servers), picture=lighthouse())
    assert answer["makersPower"] == "Infinity"  # if the client learns better, docs/clients.md has to


def test_threads_have_summaries_lists_and_unread_counts_of_their_own(servers: Servers, node: Node) -> None:
    answer = node.run("threads.mjs", servers=urls(servers))
    assert answer["replies"] == 3


def test_rooms_are_found_scrolled_searched_tagged_and_replaced(servers: Servers, node: Node) -> None:
    answer = node.run("rooms.mjs", servers=urls(servers))
    assert answer["read"] == 41


def test_encrypted_chat_with_cross_signing_secret_storage_and_key_backup(
    servers: Servers, node: Node
) -> None:
    answer = node.run("encryption.mjs", servers=urls(servers))
    assert answer["restored"]["imported"] >= 2


def test_sliding_sync_shows_a_window_of_rooms_their_timelines_and_encrypted_messages(
    servers: Servers, node: Node
) -> None:
    answer = node.run("sliding.mjs", servers=urls(servers))
    assert answer["rooms"] == 4


async def test_clients_go_on_when_their_servers_are_killed_and_start_again(
    servers: Servers, node: Node
) -> None:
    def kill(server: ServerProcess) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(server.kill)

    hub, participant = servers
    actions = {
        "kill hub": kill(hub),
        "start hub": hub.start,
        "kill participant": kill(participant),
        "start participant": participant.start,
    }
    answer = await node.run_with("restarts.mjs", actions, servers=urls(servers))
    assert answer["messages"] == 5
