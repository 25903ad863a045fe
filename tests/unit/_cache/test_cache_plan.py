# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules, order and coalescing."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cache.plan import (
    MAX_PATHS,
    MAX_WILDCARDS,
    Unusable,
    batches,
    checked,
    coalesce,
    cost,
    covers,
    expand,
    is_wildcard,
    sequence,
)
from hypothesis import given, settings
from hypothesis import strategies as st

RULES = {
    "user": {
        "patterns": ["user:{id}:*", "{user:{id}}:*"],
        "keys": ["u{id}"],
        "tags": ["user-{id}"],
        "paths": ["/users/{id}", "/users/{id}/*"],
    },
    "page": {"paths": ["/p/{id}"]},
}
PATHS = st.lists(
    st.builds(
        lambda parts, end: "/" + "/".join(parts) + end,
        st.lists(st.sampled_from(["a", "b", "c", "d1", "d2"]), min_size=1, max_size=4),
        st.sampled_from(["", "/*", "*", "/"]),
    ),
    max_size=25,
)


def served(paths: t.Sequence[str], path: str) -> bool:
    """Whether invalidating some paths reaches another one."""
    return path in paths or any(covers(one, path) for one in paths)


# ---- rules


def test_an_entity_becomes_what_its_rule_says() -> None:
    targets = expand(RULES, [{"user": 42}, {"user": ["42", 7], "page": "home"}])
    assert targets.patterns == ("user:42:*", "user:7:*", "{user:42}:*", "{user:7}:*")
    assert targets.keys == ("u42", "u7")
    assert targets.tags == ("user-42", "user-7")
    assert targets.paths == ("/p/home", "/users/42", "/users/42/*", "/users/7", "/users/7/*")


def test_an_id_means_nothing_but_itself() -> None:
    targets = expand({"user": {"patterns": ["u:{id}:*"], "paths": ["/u/{id}"]}}, [{"user": "*/../[é]"}])
    assert targets.patterns == ("u:\\*/../\\[é\\]:*",)
    assert targets.paths == ("/u/%2A%2F..%2F%5B%C3%A9%5D",)


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip()))
def test_no_id_makes_a_path_reach_further(text: str) -> None:
    (path,) = expand({"page": {"paths": ["/p/{id}"]}}, [{"page": text}]).paths
    assert path.count("/") == 2
    assert not is_wildcard(path)


@pytest.mark.parametrize("bad", ["", "  ", None, True, 1.5, {"a": 1}, "a\nb"])
def test_what_is_no_id_is_refused(bad: t.Any) -> None:
    with pytest.raises(Unusable, match=r"entities\[1\]\.user"):
        expand(RULES, [{"user": 1}, {"user": [2, bad]}])


def test_a_type_without_a_rule_is_refused() -> None:
    with pytest.raises(Unusable, match="page, user"):
        expand(RULES, [{"order": 1}])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("patterns", "*"),
        ("patterns", "[a-z]?*"),
        ("patterns", "a[b"),
        ("patterns", " "),
        ("tags", "a b"),
        ("tags", "a,b"),
        ("paths", "users"),
        ("paths", "/a*b"),
        ("paths", "/a b"),
        ("paths", "/*"),
        ("paths", "/é"),
        ("paths", "/" + "a" * 4000),
        ("keys", ""),
    ],
)
def test_what_cannot_be_flushed_is_refused(kind: str, value: str) -> None:
    with pytest.raises(Unusable):
        checked(kind, kind, value)


# ---- order


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, max_size=5), st.floats(0.1, 100))
def test_each_pass_is_inner_before_outer_and_each_step_of_the_second_waits(
    layers: list[str], in_flight_s: float
) -> None:
    steps = sequence(layers, in_flight_s)
    assert [step.layer for step in steps] == layers * 2
    assert [step.number for step in steps] == [1] * len(layers) + [2] * len(layers)
    assert {step.wait_s for step in steps if step.number == 1} <= {0.0}
    assert {step.wait_s for step in steps if step.number == 2} <= {in_flight_s}
    assert sequence(layers, 0) == steps[: len(layers)]


# ---- coalescing


@settings(deadline=None)
@given(PATHS)
def test_coalesced_paths_reach_the_same_and_none_is_too_much(paths: list[str]) -> None:
    found = coalesce(paths)
    assert set(found) <= set(paths)
    assert all(served(found, path) for path in paths)
    assert not [path for path in found if any(covers(other, path) for other in found)]


@settings(deadline=None)
@given(PATHS, st.integers(1, 10))
def test_joined_paths_are_few_enough_and_reach_at_least_the_same(paths: list[str], most: int) -> None:
    try:
        found = coalesce(paths, most)
    except Unusable:
        tops = {path if path.count("/") == 1 else path.split("/")[1] + "/*" for path in coalesce(paths)}
        assert len(tops) > most, "there are folders left to join"
        return
    assert len(found) <= most
    assert all(served(found, path) for path in paths)
    if len(coalesce(paths)) <= most:
        assert found == coalesce(paths)


def test_siblings_are_joined_below_the_deepest_folder_first() -> None:
    paths = [*(f"/img/{number}" for number in range(5)), *(f"/img/large/{number}" for number in range(4)), "/home"]
    assert coalesce(paths, 7) == ["/home", *(f"/img/{number}" for number in range(5)), "/img/large/*"]
    assert coalesce(paths, 2) == ["/home", "/img/*"]


def test_many_siblings_are_joined_at_once() -> None:
    users = range(5000)
    assert coalesce([f"/users/{user}/{page}" for user in users for page in ("profile", "orders")], 100) == ["/users/*"]
    assert coalesce([f"/users/{user}/profile" for user in users], 100) == ["/users/*"]
    apart = coalesce([f"/{kind}/{user}/{page}" for kind in "ab" for user in range(50) for page in "xy"], 150)
    assert apart == [*(f"/a/{user}/{page}" for user in sorted(map(str, range(50))) for page in "xy")][:100] + sorted(
        f"/b/{user}/*" for user in range(50)
    )


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 7000))
def test_batches_keep_the_limits_and_lose_nothing(wildcards: int, plain: int) -> None:
    paths = [*(f"/w{number}/*" for number in range(wildcards)), *(f"/p{number}" for number in range(plain))]
    groups = batches(paths)
    assert sorted(path for group in groups for path in group) == sorted(paths)
    for group in groups:
        assert 0 < len(group) <= MAX_PATHS
        assert sum(map(is_wildcard, group)) <= MAX_WILDCARDS
    assert len(groups) <= max(-(-wildcards // MAX_WILDCARDS), -(-len(paths) // MAX_PATHS))


def test_cost() -> None:
    assert cost(1000) == {"usd_at_least": 0.0, "usd_at_most": 5.0}
    assert cost(3000) == {"usd_at_least": 10.0, "usd_at_most": 15.0}
