# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What changes, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One thing that changes, in words; ``None`` for what was not or will not be there."""

    what: str
    before: str | None
    after: str | None

    def as_dict(self) -> dict[str, str | None]:
        """Return the change as a module's return value."""
        return {"what": self.what, "before": self.before, "after": self.after}
