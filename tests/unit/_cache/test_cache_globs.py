# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns: what matches, and that what stands in for an id matches nothing but itself."""

from __future__ import annotations

import re

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cache.globs import (
    Matcher,
    escape,
    is_broad,
    parse,
    prefix,
    regex,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text("ab*?[]^\\-:é", max_size=6)
KEY = st.text("ab*?[]^\\-:é", max_size=6).map(str.encode)


def matches(pattern: str, key: bytes) -> bool:
    return re.fullmatch(regex(pattern), key, re.DOTALL) is not None


# as the servers' own tests and documentation have it
@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("h?llo", b"hello", True),
        ("h?llo", b"hllo", False),
        ("h*llo", b"hllo", True),
        ("h*llo", b"heeeello", True),
        ("h[ae]llo", b"hallo", True),
        ("h[ae]llo", b"hillo", False),
        ("h[^e]llo", b"hallo", True),
        ("h[^e]llo", b"hello", False),
        ("h[a-c]llo", b"hbllo", True),
        ("h[c-a]llo", b"hbllo", True),
        ("h[a-c]llo", b"hdllo", False),
        ("h\\*llo", b"h*llo", True),
        ("h\\*llo", b"hello", False),
        ("h[\\]]llo", b"h]llo", True),
        ("h[]llo", b"hllo", False),
        ("a*", b"a\nb", True),
        ("a?", "aé".encode(), False),
        ("a??", "aé".encode(), True),
        ("a\\", b"a\\", True),
        ("A*", b"a", False),
    ],
)
def test_a_pattern_matches_as_the_server_does(pattern: str, key: bytes, expected: bool) -> None:
    assert matches(pattern, key) is expected


@settings(deadline=None)
@given(TEXT, KEY)
def test_an_escaped_text_matches_itself_alone(text: str, key: bytes) -> None:
    assert matches(escape(text), text.encode())
    assert matches(escape(text), key) is (key == text.encode())


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, st.sampled_from(["", "*", "?", "[ab]*", "*b", "[^:]"])), min_size=1, max_size=5), KEY)
def test_many_patterns_at_once_match_what_they_match_one_by_one(parts: list[tuple[str, str]], key: bytes) -> None:
    patterns = [escape(text) + end for text, end in parts]
    matcher = Matcher(patterns)
    one_by_one = any(matches(pattern, key) for pattern in patterns)
    assert matcher.matches(key) is one_by_one
    if one_by_one:
        assert matches(matcher.server, key), "the server would not even name it"
    named = [key] if matches(matcher.server, key) else []
    assert matcher.select(named) == ([key] if one_by_one else [])


def test_one_scan_asks_for_what_all_patterns_have_in_common() -> None:
    assert Matcher(["user:1:*", "user:20:*"]).server == "user:*"
    assert Matcher(["user:\\*:*", "user:\\*"]).server == "user:\\**"
    assert Matcher(["a*", "b*"]).server == "*"
    assert Matcher(["a[bc]?"]).server == "a[bc]?"


@pytest.mark.parametrize("pattern", ["*", "**", "?*", "[a-z]*", ""])
def test_what_says_nothing_of_a_key_is_broad(pattern: str) -> None:
    assert is_broad(pattern)


@pytest.mark.parametrize("pattern", ["a*", "*:session", "\\*", "?x"])
def test_what_says_something_is_not_broad(pattern: str) -> None:
    assert not is_broad(pattern)


def test_parts_and_prefix() -> None:
    assert parse("a\\*b*[x\\]]") == [("literal", "a*b"), ("any", ""), ("class", "x\\]")]
    assert prefix("a\\*b*") == "a*b"
    with pytest.raises(ValueError, match="without its"):
        parse("a[b")
