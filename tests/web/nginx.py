# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An nginx with Lua for tests of modules that keep one: the host's own program, or one that was unpacked and not installed.

The program sees directories of its own below /var/lib and /var/log, so that nothing of the host is touched, and is stopped at the end.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx import apply, observe

ROOT = pathlib.Path(__file__).resolve().parents[2]
# packages unpacked with dpkg -x, or a host where they are installed
PLACES = [pathlib.Path(os.environ.get("HEADROOM_NGINX_ROOT", ROOT / ".cache" / "nginx")), pathlib.Path("/")]
LUA = "usr/lib/nginx/modules/ngx_http_lua_module.so"
FOUND = next((place for place in PLACES if (place / LUA).exists()), None)
PROGRAM = """#!/bin/sh
export LD_LIBRARY_PATH={root}/usr/lib/{machine}-linux-gnu:{root}/lib/{machine}-linux-gnu
export LUA_PATH="{root}/usr/share/lua/5.1/?.lua;;"
if [ "$1" = -V ]; then
    {root}/usr/sbin/nginx -V 2>&1 | sed -e 's#--modules-path=[^ ]*#--modules-path={root}/usr/lib/nginx/modules#' \
        -e 's#--pid-path=[^ ]*#--pid-path={directory}/nginx.pid#'
    exit 0
fi
exec unshare --mount sh -c 'mount -t tmpfs none /var/lib && mkdir -p /var/lib/nginx && mount -t tmpfs none /var/log &&
    mkdir /var/log/nginx && mount --bind {directory}/log /var/log/nginx && exec {root}/usr/sbin/nginx "$@"' nginx "$@"
"""


class Nginx:
    """A place for an nginx that a module starts."""

    def __init__(self, directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Find the program; a test is skipped where there is none."""
        root = FOUND
        if root is None or os.geteuid() != 0 or shutil.which("unshare") is None:
            pytest.skip("no nginx with Lua here: run tools/unpack-servers as root on Debian")
        self.directory = directory
        (directory / "log").mkdir()
        self.program = directory / "nginx"
        text = PROGRAM.format(
            root="" if root == pathlib.Path("/") else root, machine=os.uname().machine, directory=directory
        )
        self.program.write_text(text)
        self.program.chmod(0o755)
        (directory / "etc").mkdir()
        self.config_file = directory / "etc" / "nginx.conf"
        self.pid_file = directory / "nginx.pid"
        monkeypatch.setattr(apply, "ERROR_LOG", str(directory / "log" / "error.log"))
        monkeypatch.setattr(apply, "SYSTEMD", str(directory / "no-systemd"))

    @property
    def master(self) -> int | None:
        """The process id, while it runs."""
        return observe.master_of(str(self.pid_file))

    def stop(self) -> None:
        """Stop it, and wait for that."""
        deadline = time.monotonic() + 20
        while (master := self.master) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(0.05)

    def start(self) -> None:
        """Start it with what it has."""
        subprocess.run([self.program, "-c", self.config_file], stdin=subprocess.DEVNULL, check=True, timeout=60)

    def said(self) -> str:
        """What is in its error log."""
        log = self.directory / "log" / "error.log"
        return log.read_text(errors="replace") if log.exists() else ""
