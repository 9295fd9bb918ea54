"""The commented YAML that `generate-config` prints; config.example.yaml is one of these."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lmserver.config_limits import DEFAULT_LIMITS
from lmserver.protocol.room_versions import I_1_ID, LM_02_ID


@dataclass(frozen=True, slots=True)
class Template:
    """What differs between generated configurations."""

    server_name: str
    data_dir: Path
    client_port: int = 8008
    federation_port: int = 8448
    database_url: str | None = None
    dev_certificate: Path | None = None
    dev_private_key: Path | None = None
    dev_ca: Path | None = None

    @property
    def dev(self) -> bool:
        return self.dev_ca is not None


def _text(value: object) -> str:
    """A YAML scalar: JSON strings are YAML."""
    return "null" if value is None else json.dumps(str(value), ensure_ascii=False)


def render(t: Template) -> str:
    """The configuration as YAML, every key explained."""
    return "".join(
        [_server(t), _listeners(t), _logins(t), _rooms(), _USERS, _MEDIA, _watching(t), _requests()]
    )


def _server(t: Template) -> str:
    """Who this server is, and where it keeps things."""
    return f"""\
# Configuration of lmserver. `lmserver check-config --config FILE` tells what is wrong with it;
# docs/configuration.md explains every key. Relative paths are relative to this file.

# The name other servers know this one by: a DNS name, optionally with a port. It is part of every
# user ID and room ID made here and cannot be changed later.
server_name: {_text(t.server_name)}

# Where the signing key and, without database.url, the embedded database live.
data_dir: {_text(t.data_dir)}

# The Ed25519 key this server signs with, made by `lmserver generate-key` or at the first start.
# Keep a copy: without it the server cannot prove who it is.
signing_key_path: {_text(t.data_dir / "signing.key")}

database:
  # postgresql://user@host/name for a PostgreSQL (13 or newer) of your own; null for the embedded
  # one, started and stopped with the server.
  url: {_text(t.database_url)}
  # Connections kept open at most.
  pool_size: 10

"""


def _listeners(t: Template) -> str:
    """Where clients and servers connect."""
    certificate = t.dev_certificate if t.dev else t.data_dir / "tls.crt"
    private_key = t.dev_private_key if t.dev else t.data_dir / "tls.key"
    networks = '["127.0.0.0/8", "::1/128"]' if t.dev else "[]"
    return f"""\
# Where clients connect: plain HTTP, to stand behind a reverse proxy that terminates TLS.
client:
  host: "127.0.0.1"
  port: {t.client_port}
  # The URL clients reach this under, for .well-known/matrix/client; null to leave that to the proxy.
  public_url: {_text(f"http://127.0.0.1:{t.client_port}" if t.dev else None)}

# Where other servers connect, and how we connect to them.
federation:
  # linearized: we are a Linearized Matrix server and say so. (dual_stack is not built yet.)
  mode: "linearized"
  # Where other servers find us, if not on port 8448 of server_name: a DNS name with an optional port,
  # such as "matrix.example.org:443". Both listeners serve it as .well-known/matrix/server; others ask
  # for it on port 443 of server_name. null: 404 there.
  well_known: null
  host: "{"127.0.0.1" if t.dev else "0.0.0.0"}"
  port: {t.federation_port}
  # PEM files; TLS 1.3. Both null: plain HTTP, on loopback behind a proxy that terminates TLS
  # (docs/nginx.conf.example).
  tls_certificate: {_text(certificate)}
  tls_private_key: {_text(private_key)}
  # Certificate authorities trusted besides the system's; null for none.
  ca_file: {_text(t.dev_ca)}
  # Servers contacted over plain HTTP, by name; for tests only.
  plain_http_servers: []
  # Networks that servers may be in although they are private, loopback or otherwise not global.
  allowed_networks: {networks}
  # Servers believed about keys of servers that cannot be reached, at most five: names, or
  # {{name: "notary.example", keys: {{"ed25519:1": "<unpadded base64>"}}}} to believe those keys alone.
  notaries: []
  # Servers we have nothing to do with, by name; operators may block more while the server runs.
  blocked_servers: []

"""


def _logins(t: Template) -> str:
    """Who may have an account, and how they log in."""
    return f"""\
registration:
  # closed: only `lmserver register-user`. token: with one of `tokens`, or
  # one made by `lmserver registration-token`. open: anybody.
  mode: "{"open" if t.dev else "closed"}"
  tokens: []

# Where people may log in instead of with a password: OpenID Connect providers, each for example
#   {{id: "corp", name: "Our company", issuer: "https://login.example.org", client_id: "lmserver",
#    client_secret_path: "/etc/lmserver/corp.secret"}}
# The provider has to send browsers back to client.public_url + /_lmserver/sso/callback.
oidc_providers: []

sso:
  # Beginnings of clients' URLs that a login goes back to without a question, such as
  # "https://app.example.org/".
  trusted_clients: []

# Registration files of application services (bridges, bots), relative to this file.
appservices: []

"""


def _rooms() -> str:
    """Rooms."""
    return f"""\
rooms:
  # The version of new rooms: {LM_02_ID}
  # (what peers know today) or {I_1_ID} (the draft as published).
  default_version: "{LM_02_ID}"
  # Clients that ask for one of Matrix's own versions, "1" to "12", get the default one; false: an error.
  map_numeric_versions: true
  # Whether users of other servers may see the list of public rooms.
  list_for_servers: true
  # Days after which a room that nobody here is in any more is deleted; null: never. A room whose hub we are
  # stays while users of other servers are in it.
  purge_empty_after_days: 30

"""


_USERS = """\
presence:
  # Whether people see who of those they share a room with is online, here and on other servers. It is
  # the most expensive thing a server can tell.
  enabled: false

# What `lmserver send-notice` tells users, in a room of its own for each.
server_notices:
  # The user who speaks; the account is made when first needed, and nobody can log in to it.
  localpart: "notices"
  # The name of that user and of the rooms.
  name: "Server notices"
  # Whether users may decline the invite to such a room, or leave it.
  can_be_declined: false

# Relays for calls (TURN), for example {uris: ["turn:turn.example.org?transport=udp"], shared_secret: "..."}
# with coturn's use-auth-secret, or username and password instead of the secret; ttl_seconds: 86400.
turn: null

user_directory:
  # Whether everybody finds every user of this server, or only those they share a room with or who are
  # in a room that anybody may join or read.
  search_all_users: false

"""
"""What users are told, and find."""


_MEDIA = """\
# Files that users upload, and copies of what other servers' users did; bytes.
media:
  # The largest upload.
  max_upload_size: 50000000
  # The largest file fetched from another server.
  max_remote_size: 100000000
  # What all copies of other servers' files may take; those used longest ago go first.
  remote_cache_size: 10000000000
  # Days that a copy nobody asks for is kept; null: as long as there is room.
  remote_retention_days: null
  # What one user may upload altogether; null for no end.
  user_quota: 5000000000

# What clients show under links: the server fetches the pages that users link to, and so tells their
# servers that somebody here did.
url_previews:
  enabled: false
  # Bytes: the largest image of a page, and what all of them may take.
  max_image_size: 5000000
  cache_size: 1000000000
  # Seconds that a page, and then its image, may take.
  timeout: 10
  # Networks pages may be in although they are private or otherwise not global, and networks they may
  # not be in although they are.
  allowed_networks: []
  denied_networks: []

"""
"""Files, and pages of the web."""


def _watching(t: Template) -> str:
    """What operators see."""
    return f"""\
logging:
  # debug, info, warning or error.
  level: "info"
  # console to read, json to collect: one line a record.
  format: "{"console" if t.dev else "json"}"

# Prometheus metrics on a listener of their own, for example {{host: "127.0.0.1", port: 9100}}; null: none.
metrics: null

# The admin API on a listener of its own, for example {{host: "127.0.0.1", port: 8009, page: true}};
# null: none. `page` serves a page for operators at /admin there. Keep it on loopback, or behind a proxy.
admin: null

"""


def _requests() -> str:
    """Who asks, and how often."""
    return f"""\
# Reverse proxies whose X-Forwarded-For is believed, as networks such as "127.0.0.1/32"; without them
# everybody behind a proxy counts as one address. They have to set or extend that header themselves.
trusted_proxies: []

# Token buckets: per_second come back, up to burst. login and registration count by address and
# account; anonymous, unauthorized, key_query and new_servers by address; room_joins by room;
# federation_* by the server that asks, federation_room_* by server and room; the others by user.
limits:
{_limits()}
"""


def _limits() -> str:
    return "\n".join(
        f"  {name}: {{per_second: {rate.per_second:g}, burst: {rate.burst}}}"
        for name, rate in DEFAULT_LIMITS.items()
    )
