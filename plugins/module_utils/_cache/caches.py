# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The layers of HTTP caches: nginx with its purge module, and Varnish. All hosts of a layer at once."""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
import typing as t
from dataclasses import dataclass, field

from .._common.errors import HeadroomError
from .exchange import Answer, Base, Connection, HttpError, Trust
from .model import NGINX, VARNISH, Counts, Targets, number
from .plan import coalesce, is_wildcard

# connections to each host, and requests that are under way on each
CONNECTIONS, PIPELINE = 4, 64
MOST_HEADER = 4000
BAN_HEADER = "X-Ban-Url"
# what caches say of something that they do not hold
_ABSENT = (404, 412)


@dataclass(frozen=True)
class Cache:
    """A layer as declared."""

    name: str
    kind: str
    hosts: tuple[Base, ...]
    method: str = "PURGE"
    path_prefix: str = ""
    wildcards: bool = False
    tags_header: str | None = None
    headers: t.Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Request:
    """One request to each host."""

    method: str
    target: str
    headers: t.Mapping[str, str] = field(default_factory=dict)


def requests_for(cache: Cache, targets: Targets) -> list[Request]:
    """Return what each host of a layer is asked. Pure."""
    if targets.everything:
        if cache.kind == VARNISH:
            return [Request("BAN", "/", {BAN_HEADER: "."})]
        return [Request(cache.method, f"{cache.path_prefix}/*")]
    made = []
    for path in coalesce(targets.paths):
        if cache.kind == VARNISH and is_wildcard(path):
            made.append(Request("BAN", "/", {BAN_HEADER: f"^{re.escape(path[:-1])}"}))
        else:
            made.append(Request(cache.method, f"{cache.path_prefix}{path}"))
    if cache.tags_header:
        made += [Request(cache.method, "/", {cache.tags_header: tags}) for tags in _joined(targets.tags)]
    return made


def _joined(tags: t.Sequence[str]) -> list[str]:
    """Return tags as the values of headers that are not too long."""
    values: list[str] = []
    for tag in tags:
        if values and len(values[-1]) + 1 + len(tag) <= MOST_HEADER:
            values[-1] += f" {tag}"
        else:
            values.append(tag)
    return values


class HttpLayer:
    """One layer of HTTP caches."""

    def __init__(self, cache: Cache, targets: Targets, trust: Trust, timeout_s: float) -> None:
        """Take the layer and what is flushed there."""
        self.name = cache.name
        self.kind = cache.kind
        self.cache = cache
        self.trust = trust
        self.timeout_s = timeout_s
        self._requests = requests_for(cache, targets)

    @property
    def idle(self) -> bool:
        """Whether nothing of what is flushed concerns this layer."""
        return not self._requests

    def describe(self) -> str:
        """Return in a line what is flushed there."""
        return f"{number(len(self._requests), 'requests')} to each of {number(len(self.cache.hosts), 'hosts')}"

    def prepare(self) -> None:
        """Need nothing."""

    def count(self) -> Counts:
        """Return what would be asked; what a cache holds it tells nobody."""
        sent = len(self._requests) * len(self.cache.hosts)
        return Counts(0, sent, False, {"hosts": [{"url": base.url, "sent": 0} for base in self.cache.hosts]})

    def flush(self, last: bool) -> Counts:
        """Ask all hosts, and require that each has confirmed each request."""
        return asyncio.run(self._flush())

    async def _flush(self) -> Counts:
        rows = await asyncio.gather(*map(self._host, self.cache.hosts))
        failed = [row for row in rows if row["error"]]
        found = sum(row["purged"] for row in rows)
        if failed:
            error = t.cast("HeadroomError", failed[0]["error"])
            for row in rows:
                row["error"] = None if row["error"] is None else str(row["error"])
            error.facts.update(found=found, sent=sum(row["sent"] for row in rows), hosts=rows)
            raise error
        for row in rows:
            del row["error"]
        # of bans Varnish only says that it keeps them
        return Counts(found, sum(row["sent"] for row in rows), self.kind == NGINX, {"hosts": rows})

    async def _host(self, base: Base) -> dict[str, t.Any]:
        """Send all requests to one host on some connections; one that fails ends those to this host."""
        row: dict[str, t.Any] = {"url": base.url, "sent": 0, "purged": 0, "absent": 0, "error": None}
        waiting = iter(self._requests)
        # few requests are shared out too
        most = min(PIPELINE, -(-len(self._requests) // CONNECTIONS))

        def take(part: t.Sequence[Request], number: int, answer: Answer) -> None:
            row["sent"] += 1
            refusal = self._judge(base, part[number], answer, row)
            row["error"] = row["error"] or refusal

        async def work() -> None:
            async with Connection(base, self.trust, self.timeout_s) as connection:
                while part := list(itertools.islice(waiting, most)):
                    if row["error"]:
                        return
                    sent = [(one.method, one.target, {**self.cache.headers, **one.headers}) for one in part]
                    await connection.ask_all(sent, functools.partial(take, part))

        async def guarded() -> None:
            try:
                await work()
            except HeadroomError as error:
                row["error"] = row["error"] or error

        await asyncio.gather(*(guarded() for _number in range(min(CONNECTIONS, len(self._requests)))))
        return row

    def _judge(self, base: Base, request: Request, answer: Answer, row: dict[str, t.Any]) -> HttpError | None:
        """Count an answer, and return what is wrong with it: what was sent after it is answered too, and counts."""
        if 200 <= answer.status < 300:
            row["purged"] += 1
        elif answer.status in _ABSENT and self.kind == NGINX:
            row["absent"] += 1
        else:
            hint = "Allow this address to purge there." if answer.status in (401, 403, 405) else "Look at its log."
            return HttpError(
                f"Failed to {request.method} {request.target[:200]} on {base.url}: it answers {answer.status}. {hint}",
                code="refused",
                url=base.url,
                status=answer.status,
            )
        return None
