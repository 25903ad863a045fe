# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP API of Prometheus in miniature, over HTTP, for tests: queries have names, and each is a function of time.

It does what a reader depends on: one value for each step of a range, 422 above 11,000 of them, 400 for a query that it does not know, 401
without the token, and NaN as text. It parses no PromQL and stores nothing.
"""

from __future__ import annotations

import math
import typing as t
from urllib.parse import parse_qs, urlsplit

from web.server import Handler, Server

MOST = 11_000
Series = t.Callable[[float], float | None]


class Prometheus(Server):
    """The server. ``queries`` are lists of series by the text of the query; a series has no value where it returns none."""

    def __init__(self, token: str | None = None) -> None:
        self.queries: dict[str, list[Series]] = {}
        self.token = token
        self.asked: list[dict[str, str]] = []
        super().__init__(_handler(self))

    def answer(self, path: str, params: dict[str, str]) -> tuple[int, dict[str, t.Any]]:
        """Answer a query."""
        self.asked.append({"path": path, **params})
        series = self.queries.get(params.get("query", ""))
        if series is None:
            return 400, {"status": "error", "errorType": "bad_data", "error": 'invalid parameter "query": parse error'}
        if path == "/api/v1/query":
            result = [{"metric": {"number": str(number)}, "value": [0, "1"]} for number, _one in enumerate(series)]
            return 200, {"status": "success", "data": {"resultType": "vector", "result": result}}
        start, end, step = (float(params[name]) for name in ("start", "end", "step"))
        count = int((end - start) // step) + 1
        if count > MOST:
            return 422, {
                "status": "error",
                "errorType": "bad_data",
                "error": f"exceeded maximum resolution of {MOST} points",
            }
        result = []
        for number, one in enumerate(series):
            values = [(start + index * step, one(start + index * step)) for index in range(count)]
            shown = [[at, _text(value)] for at, value in values if value is not None]
            if shown:
                result.append({"metric": {"number": str(number)}, "values": shown})
        return 200, {"status": "success", "data": {"resultType": "matrix", "result": result}}


def _text(value: float) -> str:
    return "NaN" if math.isnan(value) else str(value)


def _handler(server: Prometheus) -> type[Handler]:
    class Requests(Handler):
        def do_GET(self) -> None:  # noqa: N802
            parts = urlsplit(self.path)
            params = {key: values[0] for key, values in parse_qs(parts.query).items()}
            status, answer = 401, t.cast(dict[str, t.Any], {"status": "error", "error": "unauthorized"})
            if server.token is None or self.headers.get("Authorization") == f"Bearer {server.token}":
                status, answer = server.answer(parts.path, params)
            self.send(status, answer)

    return Requests
