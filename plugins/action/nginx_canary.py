# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module and show what it says on the way, as for the move of a shard."""

from __future__ import annotations

from ansible_collections.headroom.scale.plugins.action import postgresql_shard_rebalance


class ActionModule(postgresql_shard_rebalance.ActionModule):
    """Shows each step when it is there."""
