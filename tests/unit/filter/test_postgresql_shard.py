# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter that finds a key's shard, as a template uses it."""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.headroom.scale.plugins.filter import postgresql_shard as plugin
from jinja2.nativetypes import NativeEnvironment

(EXAMPLE,) = yaml.safe_load(plugin.EXAMPLES)


def rendered(text: str) -> t.Any:
    environment = NativeEnvironment()
    for name, function in plugin.FilterModule().filters().items():
        environment.filters[f"headroom.scale.{name}"] = function
    return environment.from_string(text).render(shard_map=EXAMPLE["vars"]["shard_map"])


def test_the_example_of_its_documentation_works() -> None:
    assert rendered(EXAMPLE["ansible.builtin.debug"]["msg"]) == "s2"


def test_it_returns_bucket_shard_and_epoch() -> None:
    assert rendered("{{ 999 | headroom.scale.postgresql_shard(shard_map, 'users') }}") == {
        "group": "users",
        "bucket": 0,
        "shard": "s1",
        "epoch": 1,
    }


def test_it_serves_a_list_of_keys() -> None:
    text = (
        "{{ ['1', 1000] | map('headroom.scale.postgresql_shard', shard_map, 'users') | map(attribute='shard') | list }}"
    )
    assert rendered(text) == ["s1", "s2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("'x' | headroom.scale.postgresql_shard(shard_map, 'users')", "'key' has the value 'x'"),
        ("1 | headroom.scale.postgresql_shard(shard_map, 'nobody')", "'group' has the value 'nobody'"),
        ("1 | headroom.scale.postgresql_shard({}, 'users')", "'map.epoch'"),
        (
            "1 | headroom.scale.postgresql_shard({'epoch': 1, 'shards': [5], 'groups': []}, 'users')",
            r"'shards\[0\]' has the value 5",
        ),
    ],
)
def test_it_fails_with_one_sentence(text: str, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        rendered("{{ " + text + " }}")
