"""`oidc_providers` and `sso`: where people may log in instead of with a password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import jinja2

from lmserver.config_reader import split_url

MAX_PROVIDERS: Final = 20
_ID: Final = re.compile(r"[a-z0-9_.-]{1,64}")
_KNOWN: Final = {
    "id", "name", "issuer", "client_id", "client_secret", "client_secret_path", "scopes",
    "localpart_template", "display_name_template", "allow_existing_users",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OidcProvider:
    """An OpenID Connect provider; `client_secret` None: a public client, by PKCE alone. The templates
    are Jinja2's, of `user`, the claims of the ID token and the user info."""

    id: str
    name: str
    issuer: str
    client_id: str
    client_secret: str | None
    scopes: tuple[str, ...]
    localpart_template: str
    display_name_template: str
    allow_existing_users: bool


def read_providers(value: object, base: Path, problems: list[str]) -> tuple[OidcProvider, ...]:
    """A list of mappings; what is wrong is added to `problems`."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_PROVIDERS:
        problems.append(f"oidc_providers: expected a list of at most {MAX_PROVIDERS} providers")
        return ()
    found = [provider for item in value if (provider := _provider(item, base, problems)) is not None]
    if len({provider.id for provider in found}) != len(found):
        problems.append("oidc_providers: two providers have one id")
    return tuple(found)


def read_trusted_clients(value: object, problems: list[str]) -> tuple[str, ...]:
    """`sso.trusted_clients`: URLs whose beginning is enough."""
    urls = [] if value is None else value
    if not isinstance(urls, list) or not all(isinstance(url, str) and _is_prefix(url) for url in urls):
        problems.append(
            "sso.trusted_clients: expected URLs with a host and a path, such as https://app.example.org/"
        )
        return ()
    return tuple(urls)


def _is_prefix(url: str) -> bool:
    """Without the slash after the host, https://app.example.org would trust https://app.example.org.evil."""
    parts = split_url(url)
    return parts is not None and bool(parts.scheme and parts.netloc and parts.path)


def _provider(item: object, base: Path, problems: list[str]) -> OidcProvider | None:
    if not isinstance(item, dict):
        problems.append("oidc_providers: an entry has id, name, issuer, client_id and more")
        return None
    where = f"oidc_providers: {str(item.get('id'))[:64]}"
    before = len(problems)
    problems += [f"{where}: {key}: unknown key" for key in item if key not in _KNOWN]
    texts = {key: _text(item, key, where, problems) for key in ("id", "issuer", "client_id")}
    if not _ID.fullmatch(texts["id"]):
        problems.append(f"{where}: id has 1 to 64 of a-z, 0-9, _ . -")
    if not _is_issuer(texts["issuer"]):
        problems.append(f"{where}: issuer is an https URL without query (http on loopback only)")
    scopes = item.get("scopes", ["openid", "profile"])
    if not isinstance(scopes, list) or "openid" not in scopes or not all(isinstance(s, str) for s in scopes):
        problems.append(f"{where}: scopes is a list with openid in it")
        scopes = []
    existing = item.get("allow_existing_users", False)
    if not isinstance(existing, bool):
        problems.append(f"{where}: allow_existing_users is true or false")
    made = OidcProvider(
        texts["id"],
        _text(item, "name", where, problems, texts["id"]),
        texts["issuer"],
        texts["client_id"],
        _secret(item, base, where, problems),
        tuple(scopes),
        _template(item, "localpart_template", where, problems, "{{ user.preferred_username }}"),
        _template(item, "display_name_template", where, problems, "{{ user.name }}"),
        existing is True,
    )
    return made if len(problems) == before else None


def _text(item: Mapping[Any, Any], key: str, where: str, problems: list[str], default: str = "") -> str:
    value = item.get(key, default)
    if not isinstance(value, str) or not value:
        problems.append(f"{where}: {key}: expected text")
        return ""
    return value


def _template(item: Mapping[Any, Any], key: str, where: str, problems: list[str], default: str) -> str:
    """What Jinja2 cannot read would be found out by the first who logs in."""
    text = _text(item, key, where, problems, default)
    try:
        jinja2.Environment(autoescape=False).parse(text)  # noqa: S701 - a name, no page
    except jinja2.TemplateSyntaxError as error:
        problems.append(f"{where}: {key}: {error}")
    return text


def _secret(item: Mapping[Any, Any], base: Path, where: str, problems: list[str]) -> str | None:
    secret, path = item.get("client_secret"), item.get("client_secret_path")
    if path is None:
        if not isinstance(secret, str | None):
            problems.append(f"{where}: client_secret: expected text")
        return secret if isinstance(secret, str) else None
    try:
        if secret is not None:
            raise ValueError("there is client_secret already")
        return (base / Path(str(path)).expanduser()).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        problems.append(f"{where}: client_secret_path: {error}")
        return None


def _is_issuer(url: str) -> bool:
    parts = split_url(url)
    if parts is None:
        return False
    try:
        loopback = parts.scheme == "http" and ip_address(parts.hostname or "").is_loopback
    except ValueError:
        loopback = False
    return (
        (parts.scheme == "https" or loopback)
        and bool(parts.netloc)
        and not parts.query
        and not parts.fragment
    )
