"""The few pages people see when they log in through a browser.

Everything that comes from outside is escaped by the templates; no page runs or embeds anything, none
can be framed, and none is stored or named to others as where somebody came from (attack C15).
"""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any, Final

from jinja2 import DictLoader, Environment, StrictUndefined

from lmserver.web.endpoint import Reply

# For clients that opened the page in a window of their own (CS API §Fallback).
_DONE_SCRIPT: Final = (
    "if (window.onAuthDone) { window.onAuthDone(); }"
    " else if (window.opener && window.opener.postMessage) { window.opener.postMessage('authDone', '*'); }"
)
_STYLE: Final = (
    "body{font:16px/1.5 sans-serif;max-width:32rem;margin:4rem auto;padding:0 1rem;color:#222}"
    "a.go{display:inline-block;margin:.3rem 0;padding:.5rem 1rem;background:#1d5bd8;color:#fff;"
    "text-decoration:none;border-radius:.3rem}code{word-break:break-all}"
)
_TEMPLATES: Final = {
    "page": "<!DOCTYPE html><html lang=en><meta charset=utf-8>"
    "<meta name=viewport content='width=device-width'><title>{{ title }}</title>"
    "<style>{{ style|safe }}</style><h1>{{ title }}</h1>{% block body %}{% endblock %}</html>",
    "choose": "{% extends 'page' %}{% block body %}{% for link, name in links %}"
    "<p><a class=go href='{{ link }}'>{{ name }}</a></p>{% endfor %}{% endblock %}",
    "continue": "{% extends 'page' %}{% block body %}<p>The application at <code>{{ client }}</code> will be"
    " logged in as <code>{{ user_id }}</code>. If you did not begin this yourself, close this page.</p>"
    "<p><a class=go href='{{ link }}'>Continue</a></p>{% endblock %}",
    "confirm": "{% extends 'page' %}{% block body %}<p>An application you are logged in to wants to do"
    " something that needs your consent. If you did not begin this yourself, close this page.</p>"
    "<p><a class=go href='{{ link }}'>Log in to confirm</a></p>{% endblock %}",
    "done": "{% extends 'page' %}{% block body %}<p>You may close this window and go back to the"
    " application.</p>"
    "<script>{{ script|safe }}</script>{% endblock %}",
    "failed": "{% extends 'page' %}{% block body %}<p>{{ reason }}</p>{% endblock %}",
}


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode() + "'"


HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_DONE_SCRIPT)};"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class Pages:
    """Answers in HTML."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=DictLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
        )

    def choose(self, links: list[tuple[str, str]]) -> Reply:
        """Which provider: (link, name) of each."""
        return self._page(200, "choose", "Log in with", links=links)

    def proceed(self, client: str, user_id: str, link: str) -> Reply:
        """Whether this application is to be logged in."""
        return self._page(200, "continue", "Log in?", client=client, user_id=user_id, link=link)

    def confirm(self, link: str) -> Reply:
        """Before a login that confirms something."""
        return self._page(200, "confirm", "Is that you?", link=link)

    def done(self) -> Reply:
        """After it."""
        return self._page(200, "done", "Confirmed", script=_DONE_SCRIPT)

    def failed(self, status: int, reason: str) -> Reply:
        return self._page(status, "failed", "This did not work", reason=reason)

    def _page(self, status: int, name: str, title: str, **more: Any) -> Reply:
        text = self._templates.get_template(name).render(title=title, style=_STYLE, **more)
        return Reply(status, text.encode(), HEADERS)
