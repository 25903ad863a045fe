# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Reads series from Prometheus over HTTP, in parts that it answers, with one deadline; what goes wrong is one sentence."""

from __future__ import annotations

import json
import math
import ssl
import time
import typing as t
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..._common.errors import HeadroomError, OptionError, masked
from ..trace import MAX_POINTS, Trace, parse_answer

CONNECT_S = 5.0
MAX_BYTES = 256 * 1024**2
# Prometheus answers at most 11,000 values of a series
PART = 10_000


@dataclass(frozen=True)
class Source:
    """A Prometheus, a login for it, and what is asked. Secrets never show in its representation."""

    url: str
    query: str
    days: float = 14.0
    step_s: int = 60
    end_s: float | None = None
    replicas_query: str | None = None
    throttling_query: str | None = None
    incident_query: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    ca_cert: str | None = None
    validate_certs: bool = True
    timeout_s: float = 60.0

    def check(self) -> None:
        """Check what the types do not.

        :raises OptionError: naming the option, its value and what to give instead.
        """
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment:
            shown = masked(self.url)
            raise OptionError("prometheus.url", shown, "give a URL such as 'https://prometheus.example.com:9090'.")
        if parts.username or parts.password:
            raise OptionError("prometheus.url", masked(self.url), "give the login in the other options.")
        for name, low, high, unit in (
            ("days", 0.01, 3660, "of days"),
            ("step_s", 1, 3600, "of seconds"),
            ("timeout_s", 0.1, 3600, "of seconds"),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise OptionError(f"prometheus.{name}", value, f"give a number {unit} from {low:g} to {high:g}.")
        # an empty one is none
        if self.token and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            # a secret is not shown, and a header cannot carry such a one
            remedy = "it is blank, or has a line break or a character that a token cannot have; give the token alone."
            raise OptionError("prometheus.token", "********", remedy)
        if self.ca_cert is not None and self.validate_certs:
            _check_authorities(self.ca_cert)
        if self.days * 86_400 / self.step_s > MAX_POINTS:
            raise OptionError("prometheus.step_s", self.step_s, f"it makes more than {MAX_POINTS} values; give more.")


def _check_authorities(path: str) -> None:
    """Make sure that a file with certificates can be used.

    :raises OptionError: when it cannot.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise OptionError("prometheus.ca_cert", path, "it holds no certificates in PEM format; correct it.") from error
    except OSError as error:
        remedy = f"it cannot be read ({error.strerror or error}); give a file with certificates in PEM format."
        raise OptionError("prometheus.ca_cert", path, remedy) from error


class Prometheus:
    """A session with one Prometheus. It is a context manager."""

    def __init__(self, source: Source) -> None:
        """Prepare the session; nothing is sent yet."""
        # requests is needed here alone, and costs a run that fails before nothing
        import requests
        import urllib3

        self._source, self._deadline = source, time.monotonic() + source.timeout_s
        self._session = requests.Session()
        # the environment would add logins from ~/.netrc
        self._session.trust_env = False
        self._session.proxies = requests.utils.get_environ_proxies(source.url)
        self._session.verify = (source.ca_cert or True) if source.validate_certs else False
        if not source.validate_certs:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if source.token:
            self._session.headers["Authorization"] = f"Bearer {source.token}"
        elif source.username:
            self._session.auth = (source.username, source.password or "")

    def __enter__(self) -> Prometheus:
        """Return the session."""
        return self

    def __exit__(self, *_raised: t.Any) -> None:
        """Close the connections."""
        self._session.close()

    def series(self, query: str, option: str, end_s: float) -> Trace:
        """Return the values of a query over the days that end at a time, its series added up.

        :raises HeadroomError: when it cannot be read, or has no values.
        """
        source = self._source
        # whole steps, so that two runs in one step ask for the same
        end_s = end_s // source.step_s * source.step_s
        count = math.floor(source.days * 86_400 / source.step_s)
        start_s = end_s - (count - 1) * source.step_s
        merged: dict[str, dict[str, t.Any]] = {}
        for first in range(0, count, PART):
            last = min(first + PART, count) - 1
            params = {
                "query": query,
                "start": str(start_s + first * source.step_s),
                "end": str(start_s + last * source.step_s),
                "step": str(source.step_s),
            }
            data = self._get("/api/v1/query_range", params, option)
            if data.get("resultType") != "matrix" or not isinstance(data.get("result"), list):
                raise self._error("its answer is no matrix; check that it is Prometheus.", "bad_answer")
            for one in data["result"]:
                if not isinstance(one, dict) or not isinstance(one.get("values") or [], list):
                    raise self._error(
                        "its answer holds something that is no series; check that it is Prometheus.", "bad_answer"
                    )
                name = json.dumps(one.get("metric"), sort_keys=True)
                merged.setdefault(name, {"values": []})["values"] += one.get("values") or []
        if sum(len(one["values"]) for one in merged.values()) < 2:
            raise HeadroomError(
                f"Failed to read {option} from {source.url}: the query {query!r} has no values in these {source.days:g} days; correct it.",
                code="no_data",
                query=query,
            )
        answer = {"status": "success", "data": {"resultType": "matrix", "result": list(merged.values())}}
        return parse_answer(answer, option)

    def fires(self, query: str, option: str) -> bool:
        """Return whether a query has any result now."""
        data = self._get("/api/v1/query", {"query": query}, option)
        return bool(data.get("result"))

    def _get(self, path: str, params: t.Mapping[str, str], option: str) -> dict[str, t.Any]:
        import requests

        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise self._late()
        try:
            with self._session.get(
                self._source.url.rstrip("/") + path,
                params=params,
                timeout=(min(CONNECT_S, left_s), left_s),
                # a redirect would carry the token elsewhere
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._content(response)
        except requests.exceptions.SSLError as error:
            raise self._error("its certificate is not trusted; check prometheus.ca_cert.", "tls_refused") from error
        except requests.exceptions.Timeout as error:
            raise self._late() from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise self._error("nothing answers there; check prometheus.url.", "connection_failed") from error
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        said = answer if isinstance(answer, dict) else {}
        if response.status_code in (401, 403):
            raise self._error("it refuses the login; check prometheus.token or username and password.", "unauthorized")
        if response.status_code >= 300 or said.get("status") != "success":
            cause = str(said.get("error") or f"HTTP status {response.status_code}").rstrip(".")
            raise self._error(f"{' '.join(cause.split())[:300]}. Correct {option}.", "refused")
        data = said.get("data")
        return data if isinstance(data, dict) else {}

    def _content(self, response: t.Any) -> bytes:
        parts, size = [], 0
        for part in response.iter_content(65536):
            parts.append(part)
            size += len(part)
            if time.monotonic() > self._deadline:
                raise self._late()
            if size > MAX_BYTES:
                raise self._error("its answer is larger than 256 MiB; raise prometheus.step_s.", "bad_answer")
        return b"".join(parts)

    def _late(self) -> HeadroomError:
        limit_s = self._source.timeout_s
        return self._error(f"it took longer than {limit_s:g} s; raise prometheus.timeout_s.", "timeout")

    def _error(self, cause: str, code: str) -> HeadroomError:
        return HeadroomError(
            f"Failed to query Prometheus on {self._source.url}: {cause}", code=code, host=self._source.url
        )
