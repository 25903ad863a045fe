# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side: it calls until a base backup is through, and tells what all calls did together."""

from __future__ import annotations

import copy
import typing as t
from unittest import mock

import pytest
from ansible_collections.headroom.scale.plugins.action import postgresql_instance

WRITE = {"action": "write", "object": "/etc/conf", "why": "it is missing"}
CLONE = {"action": "clone", "object": "/data", "why": "there is no data directory"}
ATTACHED = {"action": "clone", "object": "/data", "why": "a base backup runs"}
DISCARD = {"action": "discard", "object": "/data.replaced", "why": "its successor streams"}
CONF_DIFF = {"before_header": "/etc/conf", "after_header": "/etc/conf", "before": "", "after": "x"}
STEP_DIFF = {"before_header": "steps", "after_header": "steps", "before": "", "after": "discard"}


def part(done: int, **more: t.Any) -> dict[str, t.Any]:
    """Return what the module says while a base backup runs."""
    progress = {"done_bytes": done, "total_bytes": 1000, "percent": done // 10}
    return {"changed": True, "finished": False, "progress": progress, "plan": [ATTACHED], **more}


def end(**more: t.Any) -> dict[str, t.Any]:
    return {"changed": True, "finished": True, "progress": None, "plan": [], **more}


def act(monkeypatch: pytest.MonkeyPatch, results: list[dict[str, t.Any]]) -> tuple[dict[str, t.Any], int, list[str]]:
    """Run the action over these results of the module; return its own, the number of calls and what was shown."""
    task = mock.MagicMock(async_val=0, check_mode=False, diff=False)
    action = postgresql_instance.ActionModule(task, *[mock.MagicMock() for dummy in range(5)])
    execute = mock.Mock(side_effect=copy.deepcopy(results))
    monkeypatch.setattr(action, "_execute_module", execute)
    display = mock.Mock()
    monkeypatch.setattr(postgresql_instance, "Display", lambda: display)
    result = action.run(task_vars={"inventory_hostname": "pg2"})
    return result, execute.call_count, [call.args[0] for call in display.display.call_args_list]


def test_one_call_is_handed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    only = end(changed=False, diff=[], summary="as wanted")

    assert act(monkeypatch, [only]) == (only, 1, [])


def test_it_calls_until_the_base_backup_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    result, calls, shown = act(monkeypatch, [part(0), part(300), part(900), end()])

    assert calls == 4
    assert result["finished"] is True
    assert len(shown) == 3
    assert all(line.startswith("pg2: base backup ") for line in shown)
    assert ["0 %" in shown[0], "30 %" in shown[1], "90 %" in shown[2]] == [True, True, True]
    # from one report a rate cannot be told
    assert "MB/s" not in shown[0]
    assert "MB/s" in shown[1]


def test_plan_diff_and_changed_are_those_of_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    first = part(0, plan=[WRITE, CLONE], diff=[CONF_DIFF])
    last = end(changed=False, plan=[CLONE, DISCARD], diff=[CONF_DIFF, STEP_DIFF])

    result, _calls, _shown = act(monkeypatch, [first, part(500), last])

    assert result["plan"] == [WRITE, CLONE, DISCARD]
    assert result["diff"] == [CONF_DIFF, STEP_DIFF]
    assert result["changed"] is True


def test_without_a_diff_none_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "diff" not in act(monkeypatch, [part(0), end()])[0]


def test_nothing_changed_is_said_when_no_call_changed_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert act(monkeypatch, [part(0, changed=False), end(changed=False)])[0]["changed"] is False


@pytest.mark.parametrize("before", [[], [part(100)]], ids=["at once", "later"])
def test_a_failure_ends_it(monkeypatch: pytest.MonkeyPatch, before: list[dict[str, t.Any]]) -> None:
    # an unfinished failure must not be tried for ever, even one that reports progress
    failure = {**part(200), "failed": True, "msg": "disk full"}

    result, calls, _shown = act(monkeypatch, [*before, failure, end()])

    assert calls == len(before) + 1
    assert (result["failed"], result["msg"]) == (True, "disk full")


@pytest.mark.parametrize(
    "broken", [{"failed": True, "unreachable": True}, {"finished": False, "progress": None}, {"msg": "?"}]
)
def test_an_answer_that_is_no_report_ends_it_too(monkeypatch: pytest.MonkeyPatch, broken: dict[str, t.Any]) -> None:
    assert act(monkeypatch, [broken, end()])[1] == 1


def test_a_base_backup_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_instance, "MAX_DURATION_S", -1)

    result, calls, _shown = act(monkeypatch, [part(100), end()])

    assert calls == 1
    assert result["failed"] is True
    assert "did not finish" in result["msg"]


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        (0.0, "pg2: base backup 25 % of 4000 MB"),
        (1.5e8, "pg2: base backup 25 % of 4000 MB, 150.0 MB/s, about 20 s left"),
        (-5.0, "pg2: base backup 25 % of 4000 MB"),
    ],
)
def test_a_report_tells_the_rate_and_the_time_left_once_they_are_known(rate: float, line: str) -> None:
    progress = {"done_bytes": 10**9, "total_bytes": 4 * 10**9, "percent": 25}

    assert postgresql_instance.describe("pg2", progress, rate) == line


def test_more_than_the_estimate_leaves_no_negative_time() -> None:
    progress = {"done_bytes": 2000, "total_bytes": 1000, "percent": 100}

    assert postgresql_instance.describe("pg2", progress, 10.0).endswith("about 0 s left")
