# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is flushed, where, and in which order. Units are in the names."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

REDIS, NGINX, VARNISH, CLOUDFRONT = "redis", "nginx", "varnish", "cloudfront"
KINDS = ("patterns", "keys", "tags", "paths")


@dataclass(frozen=True)
class Targets:
    """What must not be served any more, each thing once and in order; ``everything`` is all that there is."""

    patterns: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    everything: bool = False

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as a return value."""
        return {**{kind: list(getattr(self, kind)) for kind in KINDS}, "everything": self.everything}


@dataclass(frozen=True)
class Step:
    """One flush of one layer. It begins when so many seconds have passed since what the step waits for has ended."""

    layer: str
    number: int
    wait_s: float = 0.0

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as a return value."""
        return {"layer": self.layer, "pass": self.number, "wait_s": self.wait_s}


@dataclass
class Counts:
    """What one flush of one layer did, or would do.

    ``found`` is what was there and went, as far as the layer can tell; ``sent`` what was asked of it. ``sure`` says whether
    ``found`` is all that a change is to be judged by.
    """

    found: int = 0
    sent: int = 0
    sure: bool = True
    more: dict[str, t.Any] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether the layer is, or would be, another one."""
        return self.found > 0 if self.sure else self.sent > 0


def number(count: int, what: str) -> str:
    """Return how many there are, as people say it: one of them has no s."""
    return f"{count} {what[:-1] if count == 1 else what}"


class Layer(t.Protocol):
    """A layer of caches."""

    name: str
    kind: str

    @property
    def idle(self) -> bool:
        """Whether nothing of what is flushed concerns this layer."""

    def describe(self) -> str:
        """Return in a line what is flushed there."""

    def prepare(self) -> None:
        """Get ready without asking anybody, so that what is missing here is told before anything is flushed."""

    def count(self) -> Counts:
        """Look what a flush would do, without doing it."""

    def flush(self, last: bool) -> Counts:
        """Flush, and return when the layer has confirmed it; ``last`` is its last flush of the run."""
