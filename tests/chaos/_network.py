# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a lab host, which can be taken away."""

from __future__ import annotations

import subprocess
import threading

CUTS_S = {"cut": 3.0, "long-cut": 12.0}


class Network:
    """The network of one host."""

    def __init__(self, container: str) -> None:
        """Take the name of the host's container."""
        shown = ["podman", "inspect", "--format", "{{.State.Pid}}", container]
        pid = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
        self.enter = ["nsenter", "--target", pid, "--net", "ip", "link", "set", "eth0"]

    def cut(self, for_s: float) -> threading.Timer:
        """Take it away, and bring it back after a time."""
        subprocess.run([*self.enter, "down"], check=True)
        timer = threading.Timer(for_s, subprocess.run, [[*self.enter, "up"]], {"check": True})
        timer.start()
        return timer
