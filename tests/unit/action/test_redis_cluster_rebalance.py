# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side: it calls until all slots have arrived, and tells what all calls did together."""

from __future__ import annotations

import copy
import typing as t
from unittest import mock

import pytest
from ansible_collections.headroom.scale.plugins.action import redis_cluster_rebalance

Result = dict[str, t.Any]


def call(slots: int, before: tuple[int, int], after: tuple[int, int], **more: t.Any) -> Result:
    """Return what the module says of a call that moved so many slots from a1 to b1."""
    names = ("a1", "b1")
    count = before[0] - 50
    return {
        "changed": bool(count),
        "finished": after == (50, 50),
        "summary": "of this call",
        "plan": {
            "id": f"plan{before[0]}",
            "moves": [{"source": "a1", "target": "b1", "count": count, "slots": "0-9"}],
            "left_out": [],
        },
        "shares": [
            {
                "name": name,
                "slots_before": was,
                "slots_after": now,
                "load_before": was,
                "load_after": now,
                "load_wanted": 50,
                "unit": "slots",
            }
            for name, was, now in zip(names, before, after, strict=True)
        ],
        "imbalance": {"before": before[0] / 50 - 1, "after": after[0] / 50 - 1},
        "healed": [],
        "interruptions": [],
        "fallbacks": [],
        "mechanism": "classic",
        "progress": {
            "slots": slots,
            "slots_total": count,
            "keys": 10 * slots,
            "bytes": 100 * slots,
            "paused_s": 0.5,
            "retries": 1,
        },
        "diff": {"before": f"a1: {before[0]}", "after": f"a1: {after[0]}"},
        **more,
    }


def act(
    monkeypatch: pytest.MonkeyPatch, results: list[Result], **given: t.Any
) -> tuple[Result, list[Result], list[str]]:
    """Run the action over these results of the module; return its own, the options of each call, and what was shown."""
    task = mock.MagicMock(async_val=0, check_mode=False, diff=False, args=given)
    action = redis_cluster_rebalance.ActionModule(task, *[mock.MagicMock() for dummy in range(5)])
    execute = mock.Mock(side_effect=copy.deepcopy(results))
    monkeypatch.setattr(action, "_execute_module", execute)
    display = mock.Mock()
    monkeypatch.setattr(redis_cluster_rebalance, "Display", lambda: display)
    result = action.run(task_vars={})
    arguments = [one.kwargs["module_args"] for one in execute.call_args_list]
    return result, arguments, [one.args[0] for one in display.display.call_args_list]


FIRST = call(20, (100, 0), (80, 20))
LAST = call(30, (80, 20), (50, 50))


def test_one_call_is_handed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    only = call(50, (100, 0), (50, 50))

    assert act(monkeypatch, [only])[0] == only


def test_several_calls_tell_what_one_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _arguments, shown = act(monkeypatch, [FIRST, LAST])

    assert (result["changed"], result["finished"]) == (True, True)
    assert result["plan"] == FIRST["plan"]
    assert result["imbalance"] == {"before": 1.0, "after": 0.0}
    assert result["diff"] == {
        "before": "a1: 100",
        "after": "a1: 50 slots, 50 slots\nb1: 50 slots, 50 slots\na1 -> b1: 50 slots: 0-9\n",
    }
    assert [(one["slots_before"], one["slots_after"]) for one in result["shares"]] == [(100, 50), (0, 50)]
    progress = result["progress"]
    assert {name: progress[name] for name in ("slots", "slots_total", "keys", "bytes", "paused_s", "retries")} == {
        "slots": 50,
        "slots_total": 50,
        "keys": 500,
        "bytes": 5000,
        "paused_s": 1.0,
        "retries": 2,
    }
    assert len(shown) == 1
    assert shown[0].startswith("20 of 50 slots moved (40%), 200 keys")


def test_all_calls_own_the_lock_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _result, arguments, _shown = act(monkeypatch, [FIRST, LAST])

    tokens = {one["lock_token"] for one in arguments}
    assert len(tokens) == 1
    assert all(tokens)
    assert [one["slice_s"] for one in arguments] == [10.0, 20.0]


def test_a_token_that_was_given_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _result, arguments, _shown = act(monkeypatch, [FIRST, LAST], lock_token="mine")

    assert {one["lock_token"] for one in arguments} == {"mine"}


def test_max_moves_is_for_all_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    _result, arguments, _shown = act(monkeypatch, [call(50, (100, 0), (50, 50))], max_moves=50)

    assert arguments[0]["slice_s"] == 0


def test_a_slice_that_was_asked_for_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result, arguments, _shown = act(monkeypatch, [FIRST, LAST], slice_s=3)

    assert result == FIRST
    assert len(arguments) == 1


def test_a_failure_keeps_what_had_been_moved_before(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {
        "changed": False,
        "failed": True,
        "msg": "Failed to reach b1.",
        "progress": {**LAST["progress"], "slots": 5},
    }

    result, arguments, _shown = act(monkeypatch, [FIRST, failed])

    assert (result["failed"], result["msg"], result["changed"]) == (True, "Failed to reach b1.", True)
    assert result["progress"]["slots"] == 25
    assert len(arguments) == 2


def test_a_failure_before_anything_moved_keeps_what_had_been_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"changed": False, "failed": True, "msg": "Failed to reach b1."}

    result, _arguments, _shown = act(monkeypatch, [FIRST, failed])

    assert result["progress"]["slots"] == 20
    assert result["progress"]["slots_total"] == 50


def test_interruptions_and_mechanisms_of_all_calls_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {**FIRST, "interruptions": ["b1 died"], "mechanism": "atomic"}
    result, _arguments, _shown = act(monkeypatch, [first, {**LAST, "interruptions": ["a1 died"]}])

    assert result["interruptions"] == ["b1 died", "a1 died"]
    assert result["mechanism"] == "mixed"


def test_a_move_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_cluster_rebalance, "MAX_DURATION_S", 0)

    result, arguments, _shown = act(monkeypatch, [FIRST, LAST])

    assert result["failed"]
    assert "did not arrive within 0 s" in result["msg"]
    assert len(arguments) == 1
