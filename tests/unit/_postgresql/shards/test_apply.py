# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a declaration says of itself when it fails on its way."""

from __future__ import annotations

import asyncio
import typing as t

import pytest

pytest.importorskip("psycopg")

from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards import apply  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.steps import Step  # noqa: E402


class Stubborn:
    """Members of which one does not let its foreign server go."""

    async def try_each(self, _work: t.Any, names: t.Sequence[str]) -> dict[str, t.Any]:
        """Commit nothing."""
        assert not names
        return {}

    async def rows(self, name: str, _query: t.Any, **_how: t.Any) -> list[t.Any]:
        if name == "s2":
            raise HeadroomError("Failed to drop headroom_s3 on s2.", code="statement_failed")
        return []


class Held:
    """A lock that is held."""

    async def check(self) -> None:
        """Be held."""


@pytest.mark.parametrize(("members", "changed"), [(("s1", "s2"), True), (("s2", "s1"), False)])
def test_what_failed_last_says_whether_something_was_changed(members: tuple[str, ...], changed: bool) -> None:
    steps = [Step(name, "unlink", "headroom_s3", "drop it") for name in members]
    with pytest.raises(HeadroomError) as caught:
        asyncio.run(apply.apply(t.cast("t.Any", Stubborn()), t.cast("t.Any", None), steps, t.cast("t.Any", Held())))
    assert caught.value.result["changed"] is changed
