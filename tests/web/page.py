# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An HTML page, read to be tested."""

from __future__ import annotations

import html.parser
import typing as t

LOADING = ("src", "href", "srcset", "data")


class Page(html.parser.HTMLParser):
    """Collects the tags of a page, and what it loads, and checks that tags nest and are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    @property
    def names(self) -> list[str]:
        """The names of all tags."""
        return [name for name, _attributes in self.tags]

    @property
    def links(self) -> list[str | None]:
        """What is loaded, or led to."""
        return [value for _name, attributes in self.tags for key, value in attributes.items() if key in LOADING]

    def handle_starttag(self, tag: str, attrs: t.Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: t.Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
