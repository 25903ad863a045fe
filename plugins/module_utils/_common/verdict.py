# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a judgement on a node or a whole cluster is made of. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

UNREACHABLE = "unreachable"
UNHEALTHY = "unhealthy"
DEGRADED = "degraded"
HEALTHY = "healthy"
VERDICTS = (HEALTHY, DEGRADED, UNHEALTHY, UNREACHABLE)
"""All verdicts, from best to worst."""


@dataclass(frozen=True)
class Reason:
    """Why a node or the cluster is not healthy: a stable code, a sentence, and the value beside its limit."""

    code: str
    message: str
    severity: str
    value: t.Any = None
    limit: t.Any = None

    def as_dict(self) -> dict[str, t.Any]:
        """Return plain data for the result."""
        return {
            "code": self.code,
            "message": self.message,
            "severity": self.severity,
            "value": self.value,
            "limit": self.limit,
        }
