# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Requests to an API server, each with a connect timeout and all of them with one deadline; what goes wrong is one sentence.

A server that sends its answer byte by byte can stretch the last request beyond the deadline, since a wait is bounded and not their sum.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import re
import tempfile
import time
import typing as t

from ..._common.errors import HeadroomError
from .connection import Access

CONNECT_S = 5.0
MAX_BYTES = 64 * 1024**2
PAGE = 500
HPA = "/apis/autoscaling/v2"
# a server that knows it (from 1.25 on) refuses fields that it does not know, which it would drop otherwise
_STRICT = {"fieldValidation": "Strict"}


class Refused(HeadroomError):
    """The API server answered with an error; ``status`` is that of HTTP, ``kind`` the resource that it is about, where it says so."""

    def __init__(self, message: str, status: int, code: str, kind: str = "") -> None:
        """Keep the sentence, the status and the kind."""
        super().__init__(message, code=code, status=status)
        self.status = status
        self.kind = kind


# the code of an answer's status, and what to do about it
_HINTS = {
    400: ("bad_request", "Correct what it names."),
    401: ("unauthorized", "Check the token or client certificate, and that it has not expired."),
    403: ("forbidden", "Give the account this right by a Role and a RoleBinding."),
    404: ("not_found", "Check the namespace and the name; a namespace has to be made first."),
    409: ("conflict", "Run again."),
    422: ("invalid", "Correct what it names."),
    429: ("overloaded", "Run again later."),
}


class Client:
    """A session with one API server. It is a context manager; at its end nothing of the login is left on the disk."""

    def __init__(self, access: Access) -> None:
        """Prepare the session; nothing is sent yet."""
        # requests is needed here alone, and costs a run that fails before nothing
        import requests
        import urllib3

        self._access = access
        self._deadline = time.monotonic() + access.timeout_s
        self._stack = contextlib.ExitStack()
        self._session = self._stack.enter_context(requests.Session())
        # the environment would add logins from ~/.netrc and other authorities than those given
        self._session.trust_env = False
        self._session.proxies = (
            {"http": access.proxy, "https": access.proxy}
            if access.proxy
            else requests.utils.get_environ_proxies(access.url)
        )
        if access.token:
            self._session.headers["Authorization"] = f"Bearer {access.token}"
        elif access.user:
            self._session.auth = (access.user, access.password or "")
        if not access.validate_certs:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._now_s: float | None = None

    def __enter__(self) -> Client:
        """Put certificates where the driver reads them: in files that only this user can read."""
        access, folder = self._access, self._stack.enter_context(tempfile.TemporaryDirectory(prefix="headroom-"))
        paths = {}
        for name, pem in (("ca", access.ca), ("cert", access.client_cert), ("key", access.client_key)):
            if pem:
                paths[name] = os.path.join(folder, name)
                with open(os.open(paths[name], os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
                    file.write(pem)
        self._session.verify = paths.get("ca", True) if access.validate_certs else False
        if "cert" in paths:
            self._session.cert = (paths["cert"], paths["key"]) if "key" in paths else paths["cert"]
        return self

    def __exit__(self, *_raised: t.Any) -> None:
        """Close connections and remove the files."""
        self._stack.close()

    @property
    def url(self) -> str:
        """Where the API server is."""
        return self._access.url

    def left_s(self) -> float:
        """Return the seconds that the run has left; 0 or less when none."""
        return self._deadline - time.monotonic()

    def now_s(self) -> float:
        """Return the time of the API server, as its last answer told it; that of this host where it told none."""
        return time.time() if self._now_s is None else self._now_s

    def get(self, path: str, purpose: str) -> dict[str, t.Any]:
        """Read one object."""
        return self._send("GET", path, purpose)

    def find(self, path: str, purpose: str) -> dict[str, t.Any] | None:
        """Read one object; ``None`` when the server knows its kind and has none of that name."""
        try:
            return self._send("GET", path, purpose)
        except Refused as error:
            if error.code == "not_found":
                return None
            raise

    def list(self, path: str, purpose: str, **query: str) -> list[dict[str, t.Any]]:
        """Read all objects of a kind, page by page."""
        items: list[dict[str, t.Any]] = []
        query["limit"] = str(PAGE)
        while True:
            answer = self._send("GET", path, purpose, params=query)
            items += answer.get("items") or []
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return items
            query["continue"] = token

    def create(self, path: str, body: t.Mapping[str, t.Any], purpose: str) -> dict[str, t.Any]:
        """Create an object; a field that the server does not know is refused."""
        return self._send("POST", path, purpose, body=body, params=_STRICT)

    def patch(self, path: str, body: t.Mapping[str, t.Any], purpose: str) -> dict[str, t.Any]:
        """Change an object by a JSON merge patch; a field that the server does not know is refused."""
        return self._send("PATCH", path, purpose, body=body, kind="application/merge-patch+json", params=_STRICT)

    def delete(self, path: str, body: t.Mapping[str, t.Any], purpose: str) -> dict[str, t.Any]:
        """Delete an object."""
        return self._send("DELETE", path, purpose, body=body)

    def _send(
        self,
        method: str,
        path: str,
        purpose: str,
        body: t.Mapping[str, t.Any] | None = None,
        kind: str = "application/json",
        params: t.Mapping[str, str] | None = None,
    ) -> dict[str, t.Any]:
        """Send one request and return its answer.

        :param purpose: what it is for, as ``VERB OBJECT``.
        :raises Refused: when the server answers with an error.
        :raises HeadroomError: when it cannot be reached, or answers something else.
        """
        import requests

        left_s = self.left_s()
        if left_s <= 0:
            raise self._late(purpose)
        headers = {"Accept": "application/json", "User-Agent": "headroom.scale"}
        if body is not None:
            headers["Content-Type"] = kind
        try:
            with self._session.request(
                method,
                self.url + path,
                params=params,
                data=None if body is None else json.dumps(body),
                headers=headers,
                timeout=(min(CONNECT_S, left_s), left_s),
                # a redirect would carry the token elsewhere
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._content(response, purpose)
        except requests.exceptions.SSLError as error:
            raise self._unreachable(purpose, _tls_cause(error), "tls_refused") from error
        except requests.exceptions.ConnectTimeout as error:
            raise self._unreachable(purpose, "it does not answer; check host and firewalls.", "no_response") from error
        except requests.exceptions.ProxyError as error:
            raise self._unreachable(
                purpose, "the proxy does not let it through; check proxy-url and HTTPS_PROXY.", "proxy"
            ) from error
        except requests.exceptions.Timeout as error:
            raise self._late(purpose) from error
        except requests.exceptions.ConnectionError as error:
            raise self._unreachable(purpose, _cause(error), "connection_failed") from error
        except (requests.exceptions.RequestException, OSError, UnicodeError) as error:
            raise self._unreachable(
                purpose, f"{type(error).__name__}; check the connection options.", "connection_failed"
            ) from error
        stamp = email.utils.parsedate_tz(response.headers.get("Date", ""))
        self._now_s = email.utils.mktime_tz(stamp) if stamp else self._now_s
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if response.status_code >= 300:
            raise self._refused(response.status_code, answer, purpose)
        if not isinstance(answer, dict):
            raise self._unreachable(
                purpose, "its answer is no JSON object; check that host is an API server.", "bad_answer"
            )
        return answer

    def _content(self, response: t.Any, purpose: str) -> bytes:
        """Return the body of an answer; the deadline is looked at after each part of it."""
        parts, size = [], 0
        for part in response.iter_content(65536):
            parts.append(part)
            size += len(part)
            if self.left_s() <= 0:
                raise self._late(purpose)
            if size > MAX_BYTES:
                raise self._unreachable(
                    purpose, "its answer is larger than 64 MiB; check that host is an API server.", "bad_answer"
                )
        return b"".join(parts)

    def _late(self, purpose: str) -> HeadroomError:
        return self._unreachable(
            purpose, f"it took longer than {self._access.timeout_s:g} s; raise timeout_s.", "timeout"
        )

    def _unreachable(self, purpose: str, cause: str, code: str) -> HeadroomError:
        return HeadroomError(f"Failed to {purpose} on {self.url}: {cause}", code=code, host=self.url)

    def _refused(self, status: int, answer: t.Any, purpose: str) -> Refused:
        said = answer if isinstance(answer, dict) and answer.get("kind") == "Status" else {}
        message = self._access.scrub(" ".join(str(said.get("message") or f"HTTP status {status}").split())).rstrip(".")
        code, hint = _HINTS.get(status, ("server_error", "Look at the API server, and run again."))
        if status == 404 and not said:
            # an object that is missing has a Status; a path that the server does not know has a line of text
            code, message, hint = (
                "api_missing",
                "it does not serve this API",
                "It is too old (autoscaling/v2 came with Kubernetes 1.23), or no API server.",
            )
        elif 300 <= status < 400:
            code, message, hint = "redirected", f"HTTP status {status}", "Give the API server's own URL as host."
        details = said.get("details")
        kind = str(details.get("kind") or "") if isinstance(details, dict) else ""
        return Refused(f"Failed to {purpose} on {self.url}: {message}. {hint}", status, code, kind)


def _tls_cause(error: Exception) -> str:
    found = re.search(r"certificate verify failed: ([^(']+)", str(error))
    if found:
        return f"its certificate is not trusted ({found.group(1).strip()}); check ca_cert, or the authority in the kubeconfig."
    return "TLS does not come about; check that host speaks https, and the client certificate."


def _cause(error: Exception) -> str:
    text = str(error)
    if "NameResolutionError" in text or "Name or service not known" in text:
        return "its name is not known; check host and DNS."
    if "Connection refused" in text:
        return "nothing listens there; check host and that the API server runs."
    return "the connection was lost; check host and that it is an API server."
