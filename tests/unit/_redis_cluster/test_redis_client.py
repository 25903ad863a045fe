# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client asks of the driver."""

from __future__ import annotations

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.client import Client
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.model import Node


@pytest.mark.parametrize("tls", [False, True])
def test_no_limit_of_the_driver_is_below_that_of_a_command(tls: bool) -> None:
    connection = Client(Node("a", "192.0.2.1", 6379), Login(tls=tls))._open()

    assert connection.socket_timeout is None
    assert connection.socket_connect_timeout is None
