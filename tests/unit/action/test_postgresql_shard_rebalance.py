# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side: it shows what the module says while it works."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t
from unittest import mock

import pytest
from ansible_collections.headroom.scale.plugins.action import postgresql_shard_rebalance as action


def act(
    monkeypatch: pytest.MonkeyPatch,
    work: t.Callable[[dict[str, t.Any]], dict[str, t.Any]],
    transport: str = "local",
    check: bool = False,
) -> tuple[dict[str, t.Any], list[str]]:
    """Run the action over a module; return its result and what was shown."""
    task = mock.MagicMock(async_val=0, check_mode=check, args={"state": "balanced"})
    one = action.ActionModule(task, mock.MagicMock(transport=transport), *[mock.MagicMock() for dummy in range(4)])
    monkeypatch.setattr(one, "_execute_module", lambda module_args, task_vars: work(module_args))
    display = mock.Mock()
    monkeypatch.setattr(action, "Display", lambda: display)
    result = one.run(task_vars={})
    return result, [call.args[0] for call in display.display.call_args_list]


def test_lines_are_shown_whole_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action, "LOOK_S", 0.01)
    paths = []

    def work(arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        path = pathlib.Path(arguments["progress_file"])
        paths.append(path)
        with path.open("a", encoding="utf-8") as file:
            for part in ("a half", " line \N{SECTION SIGN} and\nanother\n", "the last\n"):
                file.write(part)
                file.flush()
                time.sleep(0.05)
        return {"changed": True}

    result, shown = act(monkeypatch, work)
    assert result == {"changed": True}
    assert shown == ["a half line \N{SECTION SIGN} and", "another", "the last"]
    assert not os.path.exists(paths[0])


@pytest.mark.parametrize(("transport", "check"), [("ssh", False), ("local", True)])
def test_what_cannot_be_seen_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, transport: str, check: bool) -> None:
    result, shown = act(monkeypatch, lambda arguments: arguments, transport, check)
    assert result == {"state": "balanced"}
    assert shown == []


def test_the_file_goes_when_the_module_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []

    def work(arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        paths.append(arguments["progress_file"])
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        act(monkeypatch, work)
    assert not os.path.exists(paths[0])
