# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Patterns of keys as Redis has them: read, made safe for an id to stand in, and matched here, many at once. Pure."""

from __future__ import annotations

import re
import typing as t

_SPECIAL = frozenset("*?[]\\^")


def escape(text: str) -> str:
    """Return a pattern that matches this text alone."""
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in text)


def parse(pattern: str) -> list[tuple[str, str]]:
    """Return the parts of a pattern: ``("literal", text)``, ``("any", "")``, ``("one", "")`` and ``("class", inside)``.

    :raises ValueError: for a class that does not end, which servers take for something that nobody means.
    """
    parts: list[tuple[str, str]] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            parts.append(("any", ""))
        elif char == "?":
            parts.append(("one", ""))
        elif char == "[":
            end = at + 1
            while end < len(pattern) and pattern[end] != "]":
                end += 2 if pattern[end] == "\\" else 1
            if end >= len(pattern):
                raise ValueError("it has a '[' without its ']'")
            parts.append(("class", pattern[at + 1 : end]))
            at = end
        else:
            # a backslash at the end stands for itself
            if char == "\\" and at + 1 < len(pattern):
                at += 1
                char = pattern[at]
            if parts and parts[-1][0] == "literal":
                parts[-1] = ("literal", parts[-1][1] + char)
            else:
                parts.append(("literal", char))
        at += 1
    return parts


def is_broad(pattern: str) -> bool:
    """Whether a pattern says nothing of what a key contains."""
    return not any(kind == "literal" for kind, _text in parse(pattern))


def prefix(pattern: str) -> str:
    """Return the text that all keys begin with that a pattern matches."""
    parts = parse(pattern)
    return parts[0][1] if parts and parts[0][0] == "literal" else ""


def regex(pattern: str) -> bytes:
    """Return a regular expression over bytes for a pattern; it matches as the server does, byte for byte."""
    made = []
    for kind, text in parse(pattern):
        if kind == "literal":
            made.append(re.escape(text.encode()))
        elif kind == "any":
            made.append(b".*")
        elif kind == "one":
            made.append(b".")
        else:
            made.append(_class(text.encode()))
    return b"".join(made)


def _class(inside: bytes) -> bytes:
    negated = inside.startswith(b"^")
    at = 1 if negated else 0
    members: set[int] = set()
    while at < len(inside):
        if inside[at] == 0x5C and at + 1 < len(inside):
            members.add(inside[at + 1])
            at += 2
        elif at + 2 < len(inside) and inside[at + 1] == 0x2D:
            first, last = sorted((inside[at], inside[at + 2]))
            members.update(range(first, last + 1))
            at += 3
        else:
            members.add(inside[at])
            at += 1
    if negated:
        members = set(range(256)) - members
    return b"[" + b"".join(b"\\x%02x" % member for member in sorted(members)) + b"]" if members else b"(?!)"


def _common(texts: t.Sequence[str]) -> str:
    """Return what all texts begin with."""
    first, last = min(texts), max(texts)
    return next((first[:at] for at, char in enumerate(first) if last[at : at + 1] != char), first)


class Matcher:
    """Many patterns at once, so that one SCAN serves them all. ``server`` is the one pattern for the server: it matches what they match."""

    def __init__(self, patterns: t.Sequence[str]) -> None:
        """Take at least one pattern."""
        self._exact = len(patterns) == 1
        self.server = patterns[0] if self._exact else escape(_common([*map(prefix, patterns)])) + "*"
        # most patterns are a text with a star behind it: those are looked up, whatever their number
        self._starts: dict[int, set[bytes]] = {}
        rest = []
        for pattern in patterns:
            parts = parse(pattern)
            if [kind for kind, _text in parts] == ["literal", "any"]:
                start = parts[0][1].encode()
                self._starts.setdefault(len(start), set()).add(start)
            else:
                rest.append(regex(pattern))
        self._rest = re.compile(b"|".join(b"(?:%b)" % one for one in rest), re.DOTALL) if rest else None

    def select(self, keys: t.Iterable[bytes]) -> list[bytes]:
        """Return those of the keys that the server's pattern found which one of the patterns matches."""
        return list(keys) if self._exact else [key for key in keys if self.matches(key)]

    def matches(self, key: bytes) -> bool:
        """Whether one of the patterns matches."""
        if any(key[:length] in starts for length, starts in self._starts.items()):
            return True
        return self._rest is not None and self._rest.fullmatch(key) is not None
