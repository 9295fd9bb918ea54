"""Glob patterns matched in one pass over the text, whatever the pattern (attack R11).

`*` stands for any characters and `?` for one; case does not matter (Matrix appendices §Glob-style
matching). A pattern is a small automaton whose states are the bits of an integer: each character of the
text costs one step, so there is nothing to backtrack into.
"""

from __future__ import annotations

import re
from typing import Final

MAX_TEXT: Final = 8_192
"""Characters of a text that patterns with wildcards look at."""
_NO_WORD: Final = re.compile(r"[^A-Za-z0-9_]")


class Glob:
    """One pattern."""

    def __init__(self, pattern: str) -> None:
        self._literal = "" if has_wildcards(pattern) else pattern.lower()
        self._wild = has_wildcards(pattern)
        items = re.sub(r"\*+", "*", pattern.lower())
        self._pieces = [piece for piece in re.split(r"[*?]", items) if piece]
        self._any = self._loops = 0
        self._steps: dict[str, int] = {}
        state = 1
        for item in items if self._wild else "":
            if item == "*":
                self._loops |= state
                continue
            if item == "?":
                self._any |= state
            else:
                self._steps[item] = self._steps.get(item, 0) | state
            state <<= 1
        self._accepting = state

    def matches(self, text: str) -> bool:
        """Whether the whole text, in lower case, is what the pattern describes. One longer than MAX_TEXT
        is described by no pattern with wildcards."""
        if not self._wild:
            return text == self._literal
        if len(text) > MAX_TEXT or not self._may_match(text):
            return False
        state = 1
        for character in text:
            state = self._step(state, character)
            if not state:
                return False
        return bool(state & self._accepting)

    def matches_words(self, text: str) -> bool:
        """Whether a part of the text, in lower case, that begins and ends at word boundaries is what the
        pattern describes; wildcards see the first MAX_TEXT characters."""
        if not self._wild:
            return contains_words(text, self._literal)
        text = text[:MAX_TEXT]
        if not self._may_match(text):
            return False
        state, at_boundary = 0, True
        for character in text:
            boundary = _NO_WORD.match(character) is not None
            if at_boundary:
                state |= 1
            if boundary and state & self._accepting:
                return True
            state = self._step(state, character)
            at_boundary = boundary
        return bool((state | at_boundary) & self._accepting)

    def _step(self, state: int, character: str) -> int:
        advancing = state & (self._steps.get(character, 0) | self._any)
        return advancing << 1 | state & self._loops

    def _may_match(self, text: str) -> bool:
        return all(piece in text for piece in self._pieces)


def has_wildcards(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def contains_words(text: str, words: str) -> bool:
    """Whether `words` stands in the text between word boundaries; both in lower case."""
    at = text.find(words)
    while at >= 0:
        end = at + len(words)
        if at == 0 or _NO_WORD.match(text, at - 1):
            if end == len(text) or _NO_WORD.match(text, end):
                return True
            at += 1
        else:  # the next place it may begin at is behind a character of no word
            gap = _NO_WORD.search(text, at)
            if gap is None:
                return False
            at = gap.end()
        at = text.find(words, at)
    return False
