"""The edge rules as a CloudFront Function, run by Node: it has to decide as the evaluator does."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cdn.cloudfront.function import (
    MAX_BYTES,
    ORIGIN_HEADER,
    FunctionTooLarge,
    events,
    render_function,
)
from ansible_collections.headroom.scale.plugins.module_utils._cdn.edge import behavior_of, decide
from ansible_collections.headroom.scale.plugins.module_utils._cdn.model import Cdn
from cdn.node import run_function
from cdn.table import DESCRIPTION, ROWS, SECURITY, description, parse, requests


def run(directory: pathlib.Path, cdn: Cdn, **more: str) -> list[dict[str, t.Any]]:
    """Return what the rendered function makes of the requests of the table; ``more`` are headers that the viewers send."""
    asked = []
    for request in requests():
        headers = {"user-agent": request.user_agent, **more} if request.user_agent else dict(more)
        if request.country is not None:
            headers["cloudfront-viewer-country"] = request.country
        asked.append({"path": request.path, "headers": headers})
    source = render_function(cdn)
    assert source is not None
    return run_function(directory, source, asked, [origin.name for origin in cdn.origins], events(cdn))


def test_the_function_passes_the_table(tmp_path: pathlib.Path) -> None:
    cdn = parse(DESCRIPTION)
    answers = run(tmp_path, cdn, **{ORIGIN_HEADER: "spoofed"})
    assert len(answers) == len(ROWS)
    for (asked, want), answer, request in zip(ROWS, answers, requests(), strict=True):
        status, origin, cache_control = want
        assert answer["status"] == status, asked
        if status is not None:
            assert answer["headers"] == {
                name: {"value": value} for name, value in {**SECURITY, "cache-control": "no-store"}.items()
            }, asked
            continue
        assert origin is not None
        group = cdn.group(origin)
        chosen = list(group.members) if group else [origin]
        natural = behavior_of(cdn, request.path).origin
        # what the behaviour names anyway need not be chosen
        assert answer["chosen"] == chosen or (answer["chosen"] is None and origin == natural), asked
        # the cache keeps apart what comes from different origins, whatever a viewer sends
        assert answer["sent"][ORIGIN_HEADER]["value"] == ("-" if answer["chosen"] is None else origin), asked
        kept = "the origin's" if cache_control is None else cache_control
        assert answer["headers"] == {"cache-control": {"value": kept}}, asked


def test_without_routes_nothing_is_imported_and_no_header_is_sent(tmp_path: pathlib.Path) -> None:
    rules = description()["edge_rules"]
    del rules["routes"]
    cdn = parse(description(edge_rules=rules))
    source = render_function(cdn)
    assert source is not None
    assert "import" not in source
    for request, answer in zip(requests(), run(tmp_path, cdn), strict=True):
        decided = decide(cdn, request)
        assert (answer["status"], answer["chosen"]) == (decided.status, None)
        if decided.status is None:
            assert answer["headers"]["cache-control"]["value"] == decided.headers.get("cache-control", "the origin's")
            assert ORIGIN_HEADER not in answer["sent"]


@pytest.mark.parametrize(
    ("kinds", "want"),
    [
        ((), ()),
        (("deny",), ("viewer-request",)),
        (("routes",), ("viewer-request",)),
        (("cache_control",), ("viewer-response",)),
        (("deny", "cache_control"), ("viewer-request", "viewer-response")),
    ],
)
def test_only_the_events_that_rules_need_are_used(kinds: tuple[str, ...], want: tuple[str, ...]) -> None:
    rules = {kind: DESCRIPTION["edge_rules"][kind] for kind in kinds}
    cdn = parse(description(edge_rules=rules))
    assert events(cdn) == want
    assert (render_function(cdn) is None) == (want == ())


def test_the_function_uses_only_what_the_runtime_knows() -> None:
    source = render_function(parse(DESCRIPTION))
    assert source is not None
    assert source.isascii()
    assert re.findall(r"\b(?:eval|Function|for|class|async|await)\b|import\(|\?\.|\?\?|\.\.\.", source) == []


def test_the_limit_of_the_size_is_said_with_both_figures() -> None:
    def rules(count: int) -> Cdn:
        deny = [{"user_agents": [f"agent-{number:05d}" for number in range(count)]}]
        return parse(description(edge_rules={"deny": deny}))

    # the most that fits, found by trying
    fits = max(count for count in range(500, 800) if _size(rules(count)) is not None)
    assert MAX_BYTES - 20 <= (_size(rules(fits)) or 0) <= MAX_BYTES
    with pytest.raises(
        FunctionTooLarge, match=rf"have \d+ bytes, and CloudFront takes {MAX_BYTES}\. Merge rules"
    ) as seen:
        render_function(rules(fits + 1))
    assert seen.value.as_dict()["code"] == "function_too_large"
    assert seen.value.as_dict()["size_bytes"] > MAX_BYTES


def _size(cdn: Cdn) -> int | None:
    try:
        return len((render_function(cdn) or "").encode())
    except FunctionTooLarge:
        return None
