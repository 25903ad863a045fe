"""The edge rules, evaluated: the table of requests that every renderer has to pass too."""

from __future__ import annotations

import re
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cdn.edge import Request, decide
from ansible_collections.headroom.scale.plugins.module_utils._cdn.model import SecurityHeaders, path_matches
from cdn.table import DESCRIPTION, IDS, ROWS, SECURITY, description, parse
from hypothesis import given
from hypothesis import strategies as st

CDN = parse(DESCRIPTION)


@pytest.mark.parametrize(("asked", "want"), ROWS, ids=IDS)
def test_a_request_gets_what_the_table_says(asked: t.Any, want: t.Any) -> None:
    status, origin, cache_control = want
    headers = {**SECURITY, **({} if cache_control is None else {"cache-control": cache_control})}
    decided = decide(CDN, Request(*asked))
    assert (decided.status, decided.origin, dict(decided.headers)) == (status, origin, headers)


def test_each_rule_of_the_table_decides_a_row() -> None:
    """Without any one of the rules the table would fail, so that a renderer cannot leave one out."""
    for kind in ("deny", "routes", "cache_control"):
        for number in range(len(DESCRIPTION["edge_rules"][kind])):
            rules = description()["edge_rules"]
            del rules[kind][number]
            fewer = parse(description(edge_rules=rules))
            assert any(decide(CDN, Request(*asked)) != decide(fewer, Request(*asked)) for asked, _want in ROWS), (
                kind,
                number,
            )


@pytest.mark.parametrize(
    ("headers", "want"),
    [
        (SecurityHeaders(), {"strict-transport-security": "max-age=31536000"}),
        (
            SecurityHeaders(hsts_include_subdomains=True, hsts_preload=True),
            {"strict-transport-security": "max-age=31536000; includeSubDomains; preload"},
        ),
        (SecurityHeaders(hsts_max_age_s=0), {"strict-transport-security": None}),
        (SecurityHeaders(frame_options=""), {"x-frame-options": None}),
        (SecurityHeaders(frame_options="SAMEORIGIN"), {"x-frame-options": "SAMEORIGIN"}),
        (SecurityHeaders(content_type_nosniff=False), {"x-content-type-options": None}),
        (SecurityHeaders(referrer_policy=""), {"referrer-policy": None}),
        (SecurityHeaders(), {"content-security-policy": None}),
    ],
)
def test_security_headers_are_as_their_standards_spell_them(
    headers: SecurityHeaders, want: dict[str, str | None]
) -> None:
    found = headers.as_headers()
    assert {name: found.get(name) for name in want} == want


@given(pattern=st.text("ab*?./", min_size=1, max_size=8), path=st.text("ab./", max_size=8))
def test_a_pattern_matches_what_its_two_wildcards_say(pattern: str, path: str) -> None:
    """Against a matcher that knows no regular expressions."""

    def fits(left: str, right: str) -> bool:
        if not left:
            return not right
        if left[0] == "*":
            return fits(left[1:], right) or (bool(right) and fits(left, right[1:]))
        return bool(right) and left[0] in ("?", right[0]) and fits(left[1:], right[1:])

    full = pattern if pattern[0] in "/*" else f"/{pattern}"
    assert path_matches(pattern, path) == fits(re.sub(r"\*+", "*", full), path)
