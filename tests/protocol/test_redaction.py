"""H6: what a redaction leaves decides event IDs, so it may never change: fixed vectors."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmserver.protocol.events import Pdu
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import I_1, LM_02, RoomVersion
from tests.protocol.redaction_oracle import expected

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "vectors/redactions.json").read_text(encoding="utf-8")
)["vectors"]
VERSIONS = {"I.1": I_1, ".02": LM_02}


def test_h6_there_are_at_least_forty() -> None:
    assert len({v["name"] for v in VECTORS}) == len(VECTORS) >= 40


@pytest.mark.parametrize("version", list(VERSIONS))
@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_h6_redaction_and_event_id_are_those_of_the_vector_and_of_the_oracle(
    vector: dict[str, Any], version: str
) -> None:
    event = vector["event"]
    before = copy.deepcopy(event)
    room_version: RoomVersion = VERSIONS[version]
    redacted = redact(event, room_version)
    assert redacted == vector[version]["redacted"]
    assert redact(redacted, room_version) == redacted
    assert event == before
    assert Pdu(event, room_version).event_id == vector[version]["event_id"]
    assert Pdu(redacted, room_version).event_id == vector[version]["event_id"]
    assert expected(event, version) == vector[version]


def test_h6_control_a_list_with_one_name_more_or_less_is_noticed() -> None:
    """Each name in each list stands in at least one vector."""
    for version, row in VERSIONS.items():
        for kind, names in row.redacted_content.items():
            for name in names or ():
                lists = {**row.redacted_content, kind: (names or frozenset()) - {name}}
                assert _differs(replace(row, redacted_content=lists), version), (version, kind, name)
        for name in row.redacted_top_level - {"type", "content"}:
            assert _differs(replace(row, redacted_top_level=row.redacted_top_level - {name}), version), name
        for name in ("origin", "depth", "unsigned", "event_id", "redacts", "membership"):
            assert _differs(replace(row, redacted_top_level=row.redacted_top_level | {name}), version), name


def _differs(row: RoomVersion, version: str) -> bool:
    return any(redact(v["event"], row) != v[version]["redacted"] for v in VECTORS)
