"""Key documents that anybody may serve us: whatever is in them, they are read or refused."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from lmserver.federation_client.errors import FederationError
from lmserver.federation_client.keyring import Keyring
from lmserver.federation_client.keys_fetch import CLOCK_SKEW, MAX_TRUST, read_document
from lmserver.federation_client.notary_documents import NotaryDocuments
from lmserver.federation_server.keys import KeyEndpoints
from lmserver.protocol import canonical_json
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.signatures import check_json_signature, sign_json
from lmserver.storage.database import Database
from lmserver.web.app import build_app
from tests.kit.key_documents import BAD, NOW, OURS, PEER, SECOND, Millis, Peers, document

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "server_name",
    "valid_until_ts",
    "verify_keys",
    "old_verify_keys",
    "m.linearized",
    "x",
    "signatures",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), st.booleans())
def test_any_document_is_read_or_refused(changes: dict[str, Any], resign: bool) -> None:
    changed = {**document(PEER, old={SECOND: NOW}), **changes}
    if resign and isinstance(changed["signatures"], dict):
        signature = sign_json({**changed, "signatures": {}}, PEER)["signatures"]
        changed["signatures"] = {**changed["signatures"], **signature}
    try:
        read = read_document(changed, "peer.test", NOW)
    except (FederationError, ProtocolError):
        return
    assert read.valid_until_ts <= NOW + MAX_TRUST
    assert all(expired <= NOW + CLOCK_SKEW for _, expired in read.old_keys.values())
    assert set(read.keys).isdisjoint(read.old_keys)
    kept = canonical_json.parse_object(read.canonical)
    check_json_signature(kept, "peer.test", read.keys)
    assert list(kept["signatures"]) == ["peer.test"]
    check_json_signature(sign_json(kept, OURS), "us.test", {OURS.key_id: OURS.verify_key})


@pytest.mark.parametrize(
    "others",
    [{"x": 5}, {"x": None}, {"x": ["a"]}, {"us.test": {OURS.key_id: BAD}}, {"us.test": 5}, {"": {"": ""}}],
)
async def test_k9_a_document_with_odd_signatures_beside_its_own_is_served(
    db: Database, others: dict[str, Any]
) -> None:
    peers, millis = Peers(), Millis()
    served = document(PEER)
    peers.documents["peer.test"] = {**served, "signatures": {**served["signatures"], **others}}
    ring = Keyring(db, peers, OURS, millis)
    endpoints = KeyEndpoints(OURS, {}, NotaryDocuments(db, ring, millis), millis, linearized=True)
    http = TestClient(TestServer(build_app([endpoints], {})))
    async with http, http.get("/_matrix/key/v2/query/peer.test") as response:
        assert response.status == 200
        [answer] = (await response.json())["server_keys"]
    assert sorted(answer["signatures"]) == ["peer.test", "us.test"]
    check_json_signature(answer, "us.test", {OURS.key_id: OURS.verify_key})
    await ring.close()
