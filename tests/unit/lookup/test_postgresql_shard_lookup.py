# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup hands its options to the member that is asked, and its errors to the play in one sentence."""

from __future__ import annotations

import datetime
import socket
import typing as t
import uuid

import pytest
import yaml

pytest.importorskip("psycopg")

from ansible.errors import AnsibleLookupError  # noqa: E402
from ansible_collections.headroom.scale.plugins.doc_fragments.postgresql import ModuleDocFragment  # noqa: E402
from ansible_collections.headroom.scale.plugins.lookup import postgresql_shard as plugin  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards import ask as room  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import Members  # noqa: E402

ANSWER = {"group": "users", "bucket": 34, "shard": "s1", "epoch": 1, "conninfo": "host=h port=5432 dbname='shop'"}


def run(keys: list[t.Any], **options: t.Any) -> t.Any:
    """Run the lookup with the defaults that are documented."""
    documented = yaml.safe_load(plugin.DOCUMENTATION)["options"]
    fragment = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    defaults = {name: option.get("default") for name, option in {**fragment, **documented}.items()}
    lookup = plugin.LookupModule()
    given = {**defaults, "group": "users", "host": "h", **options}
    lookup.set_options = lambda var_options, direct: None
    lookup.get_option = given.__getitem__
    return lookup.run(keys, variables={})


def test_keys_go_to_the_member_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[t.Any] = []

    async def rows(self: Members, name: str, query: str, params: t.Any, **how: t.Any) -> list[dict[str, t.Any]]:
        asked.append((self.members[name].host, self.members[name].port, self.login.db, params))
        return [ANSWER] * len(params["keys"])

    monkeypatch.setattr(Members, "rows", rows)
    keys = [42, "x", datetime.date(2026, 1, 2), uuid.UUID(int=1)]
    assert run(keys, host="a,b", port=5433, login_db="shop") == [ANSWER] * 4
    texts = ["42", "x", "2026-01-02", "00000000-0000-0000-0000-000000000001"]
    assert asked == [("a,b", 5433, "shop", {"group": "users", "keys": texts})]


@pytest.mark.parametrize("key", [True, 1.5, None, [1]])
def test_what_is_no_key_is_refused(key: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "Members", None)
    with pytest.raises(AnsibleLookupError, match="give a number, a text, a UUID or a date"):
        run([key])


def test_a_member_that_is_not_there_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(AnsibleLookupError) as error:
            run([1], host="127.0.0.1", port=port)
    assert f"on 127.0.0.1:{port}: Connection refused." in str(error.value)
    assert error.value.__cause__ is None
