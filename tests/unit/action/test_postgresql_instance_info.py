# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side: a clock is compared with the moments before and after it was read."""

from __future__ import annotations

import typing as t
from unittest import mock

import pytest
from ansible_collections.headroom.scale.plugins.action import postgresql_instance_info


def look(monkeypatch: pytest.MonkeyPatch, result: dict[str, t.Any], *clock: float) -> dict[str, t.Any]:
    """Run the action over this result of the module, with what the controller's clock says before and after."""
    task = mock.MagicMock(async_val=0, check_mode=False)
    action = postgresql_instance_info.ActionModule(task, *[mock.MagicMock() for dummy in range(5)])
    monkeypatch.setattr(action, "_execute_module", mock.Mock(return_value=result))
    monkeypatch.setattr(postgresql_instance_info, "time", mock.Mock(time=mock.Mock(side_effect=clock)))
    return action.run(task_vars={})


@pytest.mark.parametrize(
    ("clock_s", "skew_s"),
    [
        # however long the task took on its way, either way
        (1000.0, 0.0),
        (1019.9, 0.0),
        (1035.5, 15.5),
        (988.0, -12.0),
    ],
)
def test_only_what_is_certain_counts(monkeypatch: pytest.MonkeyPatch, clock_s: float, skew_s: float) -> None:
    result = look(monkeypatch, {"host": {"clock_s": clock_s, "cpus": 2}}, 1000.0, 1020.0)

    assert result == {"host": {"clock_s": clock_s, "cpus": 2, "clock_skew_s": skew_s}}


def test_a_failure_is_handed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(monkeypatch, {"failed": True, "msg": "no"}, 1000.0) == {"failed": True, "msg": "no"}
