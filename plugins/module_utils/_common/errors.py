# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The one family of errors that domain code raises; only the edge of a module turns them into a failure."""

from __future__ import annotations

import re
import typing as t


class HeadroomError(Exception):
    """Something could not be done.

    The message is one sentence a person can act on: ``Failed to VERB OBJECT on HOST:PORT: cause. Hint.``
    """

    code = "failed"

    def __init__(
        self, message: str, *, code: str | None = None, result: dict[str, t.Any] | None = None, **facts: t.Any
    ) -> None:
        """Keep the sentence, a machine-readable code, the facts behind it and what had been seen so far.

        :param code: stable identifier for callers that branch on it.
        :param result: return values to hand out beside the failure.
        :param facts: figures and names that belong to this error.
        """
        super().__init__(message)
        self.code = code or self.code
        self.result = result or {}
        self.facts = facts

    def as_dict(self) -> dict[str, t.Any]:
        """Return this error as one entry of a module's ``errors`` list."""
        return {"code": self.code, "message": str(self), **self.facts}


def masked(url: str) -> str:
    """Return a URL as it may be shown: without a login that stands in it, and without its query, which may hold a token."""
    return re.sub(r"\?.*", "?********", re.sub(r"//[^/]*@", "//********@", url), flags=re.DOTALL)


class OptionError(HeadroomError):
    """An option's value cannot be used: names the option, the value and the remedy."""

    code = "bad_option"

    def __init__(self, option: str, value: t.Any, remedy: str) -> None:
        """Name the option, its value and what to give instead."""
        super().__init__(f"Option {option!r} has the value {value!r}: {remedy}", option=option, value=value)
