"""The command line as its users call it."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
from pathlib import Path

import pytest
import trustme
import yaml
from cryptography import x509

from lmserver import own_keys
from lmserver.cli import main
from lmserver.commands import conflicts
from lmserver.config import ConfigError, load_config, parse_config
from lmserver.storage import key_conflicts
from lmserver.storage.database import Database
from tests.kit.certificates import Pair
from tests.kit.processes import lmserver

VECTORS = json.loads((Path(__file__).parent.parent / "vectors/eigen.json").read_text(encoding="utf-8"))
COMMANDS = [
    "conformance", "federation-check",
    "run", "generate-config", "check-config", "migrate", "generate-key", "rotate-key", "register-user",
    "verify", "evidence", "key-conflicts", "inspect-event", "demo",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: lmserver " + command in capsys.readouterr().out


def generated(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["generate-config", *arguments]) == 0
    return capsys.readouterr().out


def test_generated_configurations_load_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(capsys, "--server-name", "localhost:8999", "--data-dir", str(tmp_path / "d"),
                     "--client-port", "8998", "--dev", str(tmp_path / "ca"))  # fmt: skip
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    assert (config.server_name, config.federation_listener.port, config.client.port) == (
        "localhost:8999",
        8999,
        8998,
    )
    assert config.registration.mode == "open"
    assert main(["check-config", "--config", str(path)]) == 0


def test_a_certificate_that_cannot_be_served_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, ca = Pair(tmp_path / "tls.crt", tmp_path / "tls.key"), trustme.CA()
    path = tmp_path / "c.yaml"
    federation = {"tls_certificate": "tls.crt", "tls_private_key": "tls.key"}
    path.write_text(yaml.safe_dump({"server_name": "example.org", "federation": federation}))
    assert main(["check-config", "--config", str(path)]) == 1
    pair.write(ca, "example.org", valid_for=5 * 86400)
    assert main(["check-config", "--config", str(path)]) == 0
    assert "5 days left" in capsys.readouterr().err
    pair.private_key.write_text("no key")
    assert main(["check-config", "--config", str(path)]) == 1
    assert "federation.tls_certificate" in capsys.readouterr().err


def test_two_servers_of_one_dev_folder_trust_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("localhost:8999", "localhost:8997"):
        generated(
            capsys, "--server-name", name, "--data-dir", str(tmp_path / "d"), "--dev", str(tmp_path / "ca")
        )
    authorities = list((tmp_path / "ca").glob("ca.pem"))
    assert len(authorities) == 1
    assert stat.S_IMODE((tmp_path / "ca/ca.key").stat().st_mode) == 0o600
    context = ssl.create_default_context(cafile=str(authorities[0]))
    assert context.cert_store_stats()["x509_ca"] >= 1
    certificate = x509.load_pem_x509_certificate((tmp_path / "ca/localhost_8999.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("name", ["127.0.0.1", "ex ample", "", "a" * 300])
def test_a_name_no_server_may_have_is_refused(name: str, tmp_path: Path) -> None:
    assert main(["generate-config", "--server-name", name, "--data-dir", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"server_name": "example.org", "nmae": 1}, "nmae: unknown key"),
        ({"server_name": "127.1"}, "server_name:"),
        ({"server_name": "example.org", "client": {"port": "80"}}, "client.port: expected a whole number"),
        ({"server_name": "example.org", "client": {"port": True}}, "client.port: expected a whole number"),
        ({"server_name": "example.org", "client": []}, "client: expected a section"),
        ({"server_name": "example.org", "registration": {"tokens": ["short"]}}, "registration.tokens:"),
        ({"server_name": "example.org", "federation": {"mode": "dual_stack"}}, "not built yet"),
        ({"server_name": "example.org", "federation": {"tls_certificate": "x"}}, "go together"),
        ({"server_name": "example.org", "federation": {"allowed_networks": ["10/33"]}}, "is not a network"),
        ({"server_name": "example.org", "database": {"url": "mysql://x"}}, "database.url:"),
        ({"server_name": "example.org", "limits": {"login": {"per_second": 0}}}, "limits.login.per_second"),
        (
            {"server_name": "example.org", "limits": {"login": {"per_second": float("nan")}}},
            "a number above 0",
        ),
        (
            {"server_name": "example.org", "limits": {"login": {"per_second": float("inf")}}},
            "a number above 0",
        ),
        (
            {"server_name": "example.org", "limits": {"login": {"burst": -5}}},
            "limits.login.burst: expected 1",
        ),
        ({"server_name": "example.org", "database": {"pool_size": 1}}, "database.pool_size: expected 2 to"),
        ({"server_name": "example.org", "client": {"host": ""}}, "client.host: expected an address"),
        ({"server_name": "example.org", "metrics": {"host": " "}}, "metrics.host: expected an address"),
        ({"server_name": "example.org", "client": {"public_url": "http://[::1"}}, "client.public_url:"),
        ({"server_name": "example.org", "client": {"public_url": "http://a:b"}}, "client.public_url:"),
        ({"server_name": "example.org", "sso": {"trusted_clients": ["http://["]}}, "sso.trusted_clients:"),
        ({"server_name": "example.org", "sso": {"trusted_clients": ""}}, "sso.trusted_clients:"),
        ({"server_name": "example.org", "appservices": {}}, "appservices: expected a list"),
        ({"server_name": "example.org", "trusted_proxies": ["127.0.0.1/8"]}, "has host bits set"),
        (
            {"server_name": "example.org", "client": {"port": 8448}},
            "client.port and federation.port are both 8448",
        ),
        (
            {"server_name": "example.org", "admin": {"port": 9}, "metrics": {"port": 9}},
            "admin.port and metrics.port",
        ),
        (
            {
                "server_name": "example.org",
                "oidc_providers": [
                    {"id": "a", "issuer": "https://x", "client_id": "c", "localpart_template": "{{ user"}
                ],
            },
            "localpart_template: unexpected end of template",
        ),
        ([], "not a mapping"),
    ],
)
def test_what_is_wrong_is_named(raw: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(raw, tmp_path)
    assert any(problem in line for line in refused.value.problems), refused.value.problems


def test_listeners_of_two_addresses_may_have_one_port(tmp_path: Path) -> None:
    federation = {"host": "127.0.0.2", "port": 8008}
    config = parse_config({"server_name": "example.org", "federation": federation}, tmp_path)
    assert config.federation_listener.port == config.client.port


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            b"server_name: one.example\nserver_name: two.example\n",
            "line 2, column 1: server_name is there twice",
        ),
        (b"server_name: one.example\n\tx: 1\n", "line 2, column 1: found character"),
        (b"server_name: \xff\n", "not UTF-8 text: byte 13 is 0xff"),
        (b"server_name: 2026-13-01\n", "not YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_cannot_be_read_as_yaml_is_told_in_one_line(
    text: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    assert main(["check-config", "--config", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"configuration: {path}: ") and problem in told and told.count("\n") == 1


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"server_name": "1.2.3.4", "x": 1, "client": {"port": 70000}}, tmp_path)
    assert len(refused.value.problems) == 3


def test_k7_a_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    assert main(["generate-key", str(path)]) == 0
    before = path.read_bytes()
    assert main(["generate-key", str(path)]) == 1
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert own_keys.load(path, "example.org").signing.server_name == "example.org"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        own_keys.load(path, "example.org")


@pytest.mark.parametrize("seed", ["A" * 43, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE", "short", "a b"])
def test_k7_a_predictable_key_is_refused(seed: str, tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_text(f"ed25519 1 {seed}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        own_keys.load(path, "example.org")


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS["vectors"] if v["name"] != "DIVERGENT_float_hub_rfc8785"],
    ids=lambda v: v["name"],
)
def test_inspect_event_explains_the_vectors(vector: dict, tmp_path: Path) -> None:
    from lmserver.commands.inspect_event import inspect

    keys = {server: {key["key_id"]: key["public_b64"]} for server, key in VECTORS["keys"].items()}
    version = VECTORS["room_version"]
    report = inspect(json.dumps(vector["pdu"]).encode(), version, keys)
    assert report["form"] == "pdu"
    assert report["event_id"] == vector["event_id"]
    assert report["content_hash"] == vector["pdu_content_hash"]
    assert report["canonical"] == vector["pdu_signing_input"]
    assert report["hashes_ok"] is True
    assert {v for by_key in report["signatures"].values() for v in by_key.values()} == {"valid"}
    changed = {**vector["pdu"], "origin_server_ts": 5}
    assert inspect(json.dumps(changed).encode(), version, keys)["hashes_ok"] is False
    unknown = inspect(json.dumps(vector["pdu"]).encode(), version, {})
    assert {v for by_key in unknown["signatures"].values() for v in by_key.values()} == {"unknown"}


def test_inspect_event_reads_standard_input(tmp_path: Path) -> None:
    vector = next(v for v in VECTORS["vectors"] if v["origin"] == "participant")
    done = lmserver("inspect-event", stdin=json.dumps(vector["lpdu_as_sent"]))
    report = json.loads(done.stdout)
    assert (report["form"], report["event_id"]) == ("lpdu", vector["lpdu_event_id"])
    assert report["lpdu_content_hash"] == vector["lpdu_content_hash"]
    refused = lmserver("inspect-event", stdin="[1]")
    assert (refused.returncode, refused.stderr.startswith("not an event:")) == (1, True)


def test_a_missing_configuration_is_told_without_a_traceback(tmp_path: Path) -> None:
    done = lmserver("run", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert "cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_the_demo_tells_its_story() -> None:
    done = lmserver("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Both servers tell the same history" in done.stdout
    assert done.stdout.count("all hold") == 2


def test_yaml_of_the_example_has_no_secrets() -> None:
    text = (Path(__file__).parent.parent.parent / "config.example.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["registration"]["tokens"] == []


async def test_key_conflicts_are_listed(
    database_url: str, db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config({"server_name": "us.test", "database": {"url": database_url}}, tmp_path)
    assert await asyncio.to_thread(conflicts.run, config) == 0
    assert "No key ID" in capsys.readouterr().out
    await key_conflicts.add(db, "evil.test", [("ed25519:1", bytes(32))], "notary.test", 1_700_000_000_000)
    assert await asyncio.to_thread(conflicts.run, config) == 0
    assert "evil.test ed25519:1: not used: AAAA" in capsys.readouterr().out
