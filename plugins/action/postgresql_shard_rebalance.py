# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module and show what it says on the way: a module alone cannot be seen at work."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

LOOK_S = 0.5


class Teller(threading.Thread):
    """Shows the lines of a file as they come."""

    def __init__(self, path: str, say: t.Callable[[str], None]) -> None:
        """Take the file, and what shows a line."""
        super().__init__(daemon=True)
        self.path = path
        self.say = say
        self.ended = threading.Event()
        self._told = 0

    def run(self) -> None:
        """Look again and again, and once more at the end."""
        while not self.ended.wait(LOOK_S):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(OSError), open(self.path, encoding="utf-8") as file:
            file.seek(self._told)
            text = file.read()
            whole, _newline, _rest = text.rpartition("\n")
            self._told += len(f"{whole}\n".encode()) if whole else 0
            for line in whole.splitlines():
                self.say(line)


class ActionModule(ActionBase):
    """The controller's side of postgresql_shard_rebalance."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module in one call, since a copy cannot be interrupted, and show its progress where it can be seen."""
        super().run(tmp, task_vars)
        given = self._task.args
        near = getattr(self._connection, "transport", "") == "local"
        if not near or given.get("progress_file") or self._task.check_mode:
            return self._execute_module(module_args=dict(given), task_vars=task_vars)
        handle, path = tempfile.mkstemp(prefix="headroom-progress-")
        os.close(handle)
        teller = Teller(path, Display().display)
        teller.start()
        try:
            return self._execute_module(module_args={**given, "progress_file": path}, task_vars=task_vars)
        finally:
            teller.ended.set()
            teller.join(5)
            os.unlink(path)
