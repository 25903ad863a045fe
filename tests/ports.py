# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of loopback for servers that tests start: none twice, and none that the system may give to somebody else meanwhile."""

from __future__ import annotations

import itertools
import random
import socket

HOST = "127.0.0.1"
# with the ports of buses, 10,000 further on, below what the system gives out by itself
PORTS = range(10000, 22000)
# each worker of the tests has an order of its own, whatever seeds a test may set
_NEXT = itertools.cycle(random.SystemRandom().sample(PORTS, len(PORTS)))


def free_port(*beside: int) -> int:
    """Return a port of loopback that nobody has, nor the ports so much further on."""
    for port in itertools.islice(_NEXT, len(PORTS)):
        if all(_free(port + step) for step in (0, *beside)):
            return port
    raise RuntimeError(f"no port of {HOST} is free from {PORTS.start} to {PORTS.stop - 1}")


def _free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True
