"""What the documents claim and a script can check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmserver.config import load_config
from lmserver.config_template import Template, render

ROOT = Path(__file__).resolve().parent.parent
STATUSES = {"yes", "partly", "no", "n/a"}

# The headings of draft-04, in order, without those of its front and back matter.
SECTIONS = """
Introduction; Conventions and Definitions; Architecture; Server Names; Rooms; Room Versions; Users; Devices;
Events; Linearized PDU; State Events; Stripped State; Event Types; m.room.create; m.room.join_rules;
m.room.member; m.room.power_levels; m.room.history_visibility; Calculating Event Visibility;
TODO: Other events; MLS Considerations; Device Credentials; Group Creation; Updating Group State;
Key Packages; Room Event Types; m.mls.commit; m.room.encrypted; Processing Events; Receiving Events/PDUs;
Authorization Rules; Auth Events Selection; Calculating Power Levels; Auth Rules Algorithm; Signing;
Signing Events; Signing Arbitrary Objects; Checking Signatures; Canonical JSON; Event Redactions; Hashes;
Content Hash Calculation; Reference Hash Calculation; Unpadded Base64; Hub Selection; Hub Transfers;
Transport; TLS Certificates; API Standards; Requests and Responses; Errors; Unsupported Endpoints;
Malformed Requests; Transaction Identifiers; Rate Limiting; Resolving Server Names;
GET /.well-known/matrix/server; Request Authentication; Retrieving Server Keys; Validity;
GET /_matrix/key/v2/server; GET /_matrix/key/v2/query/:serverName; POST /_matrix/key/v2/query;
Sending Events; PUT /_matrix/federation/v2/send/:txnId; Event and State APIs;
GET /_matrix/federation/v2/event/:eventId; GET /_matrix/federation/v1/state/:roomId;
GET /_matrix/federation/v1/state_ids/:roomId; GET /_matrix/federation/v2/backfill/:roomId;
Room Membership; Make and Send Handshake; Invites; POST /_matrix/federation/v3/invite/:txnId;
Rejecting Invites and Leaves; GET /_matrix/federation/v1/make_leave/:roomId/:userId;
POST /_matrix/federation/v3/send_leave/:txnId; Joins;
GET /_matrix/federation/v1/make_join/:roomId/:userId; POST /_matrix/federation/v3/send_join/:txnId; Knocks;
GET /_matrix/federation/v1/make_knock/:roomId/:userId; POST /_matrix/federation/v3/send_knock/:txnId;
Content Repository; Ephemeral Data Units (EDUs); MLS; Device Info Publishing;
GET /_matrix/federation/v1/user/:userId/device/:deviceId; To-Device Messaging; One Time Key Claiming;
POST /_matrix/federation/v1/user/keys/claim; TODO: Remainder of Transport; Open Questions; User Privacy;
Spam Prevention; Security Considerations; MIMI Protocol Comparison; IANA Considerations
"""


def index_rows() -> list[list[str]]:
    text = (ROOT / "docs/spec-index.md").read_text(encoding="utf-8")
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith((" ---", " section"))]


def test_every_section_of_the_draft_is_in_the_index_in_order() -> None:
    expected = [" ".join(name.split()) for name in SECTIONS.split(";")]
    assert [row[0] for row in index_rows()] == expected


def test_the_architecture_names_every_package_and_no_file_that_is_not() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    text, _, _ = text.partition("## What we keep out")
    code = ROOT / "lmserver"
    for path in re.findall(r"`([a-z_0-9/]+(?:\.py|/))`", text):
        places = (ROOT / path, code / path)
        assert any(place.exists() for place in places) or list(code.rglob(path)), path
    for package in (found.parent for found in code.rglob("__init__.py")):
        if package != code:
            assert f"{package.relative_to(code).as_posix()}/" in text, package


@pytest.mark.parametrize("row", index_rows(), ids=lambda row: row[0])
def test_the_index_names_files_and_tests_that_exist(row: list[str]) -> None:
    _, status, where, notes = row
    assert status in STATUSES
    for path in re.findall(r"`([a-z_0-9/]+\.py)`", where + notes):
        assert (ROOT / path).exists(), path
    assert status != "yes" or "`tests/" in notes, "which test shows it?"
    assert where or status in ("no", "n/a")
    assert notes or status != "partly", "what is missing?"


def attack_rows() -> list[list[str]]:
    text = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| [A-Z]\d+ \|", line)
    ]


@pytest.mark.parametrize("row", attack_rows(), ids=lambda row: row[0])
def test_every_attack_is_tested_under_its_id(row: list[str]) -> None:
    """In the name of a test, or at the beginning of the name of one of its cases."""
    attack, _, _, tests = row
    named = re.compile(
        rf"def test_\w*?(?<![a-z0-9]){attack}(?![a-z0-9])|[\"']{attack}(?![a-z0-9])", re.IGNORECASE
    )
    paths = re.findall(r"`([a-z_0-9/]+\.py)`", tests)
    assert paths
    for path in paths:
        assert named.search((ROOT / path).read_text(encoding="utf-8")), path


def test_the_example_configuration_is_what_the_code_generates(tmp_path: Path) -> None:
    example = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    assert example == render(Template("example.org", Path("/var/lib/lmserver")))
    path = tmp_path / "lmserver.yaml"
    path.write_text(example, encoding="utf-8")
    assert load_config(path).server_name == "example.org"


def test_every_configuration_key_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    section = ""
    for line in (ROOT / "config.example.yaml").read_text(encoding="utf-8").splitlines():
        top, nested = re.match(r"([a-z_]+):(.*)", line), re.match(r"  ([a-z_]+):", line)
        if top:
            section = top[1]
            if top[2].strip():
                assert f"`{section}`" in text, section
        elif nested:
            assert f"`{section}.{nested[1]}`" in text, f"{section}.{nested[1]}"


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document if (ROOT / document).exists() else ROOT / "docs" / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
