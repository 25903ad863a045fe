# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""How to reach an API server: the options that all modules share, and where what they leave out is found. No driver is imported here."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
import typing as t
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError

# where a pod finds its service account
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


def connection_spec() -> ArgumentSpec:
    """Return the connection options; they match the documentation fragment ``headroom.scale.kubernetes``."""
    return ArgumentSpec(
        {
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
            "host": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "ca_cert": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "client_cert": {"type": "path"},
            "client_key": {"type": "path", "no_log": False},
            "timeout_s": {"type": "float", "default": 30.0},
        },
        mutually_exclusive=[("host", "kubeconfig"), ("host", "context")],
        required_together=[("client_cert", "client_key")],
        required_by={"token": ("host",), "client_cert": ("host",), "ca_cert": ("host",)},
    )


@dataclass(frozen=True)
class Access:
    """An API server and a login for it. Secrets never show in its representation.

    ``ca``, ``client_cert`` and ``client_key`` are PEM texts. ``timeout_s`` is what the whole run is given, in seconds.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    validate_certs: bool = True
    client_cert: str | None = None
    client_key: str | None = field(default=None, repr=False)
    proxy: str | None = None
    timeout_s: float = 30.0

    def scrub(self, text: str) -> str:
        """Return ``text`` without secrets, should a server ever repeat them."""
        for secret in (self.token, self.password):
            if secret:
                text = text.replace(secret, "********")
        return text


def parse_access(params: t.Mapping[str, t.Any]) -> Access:
    """Check the connection options of a module and find what they leave out.

    Without ``host`` it is a kubeconfig: that given, that of the environment variable ``KUBECONFIG``, or ``~/.kube/config``, and without
    one of these the service account of the pod that the module runs in.

    :raises HeadroomError: when an option, or what was found, cannot be used.
    """
    timeout_s = params["timeout_s"]
    if not 0.1 <= timeout_s <= 3600:
        raise OptionError("timeout_s", timeout_s, "give a number of seconds from 0.1 to 3600.")
    if params["host"] is not None:
        files = {name: _read(name, params[name]) for name in ("ca_cert", "client_cert", "client_key")}
        return Access(
            url=_url("host", params["host"]),
            token=params["token"],
            ca=files["ca_cert"],
            validate_certs=params["validate_certs"],
            client_cert=files["client_cert"],
            client_key=files["client_key"],
            timeout_s=timeout_s,
        )
    path = params["kubeconfig"] or os.environ.get("KUBECONFIG")
    source = "kubeconfig" if params["kubeconfig"] else "KUBECONFIG"
    if path is None and os.path.isfile(os.path.expanduser("~/.kube/config")):
        path = os.path.expanduser("~/.kube/config")
    if path is not None:
        try:
            return _from_kubeconfig(source, path, params["context"], params["validate_certs"], timeout_s)
        except (AttributeError, KeyError, TypeError) as error:
            # a number where a list should be, and the like
            raise OptionError(source, path, "it does not have the shape of a kubeconfig; correct it.") from error
    if os.environ.get("KUBERNETES_SERVICE_HOST") and os.path.isfile(f"{ACCOUNT}/token"):
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return Access(
            url=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            token=(_read("token", f"{ACCOUNT}/token") or "").strip(),
            ca=_read("ca.crt", f"{ACCOUNT}/ca.crt"),
            validate_certs=params["validate_certs"],
            timeout_s=timeout_s,
        )
    raise HeadroomError(
        "Failed to find an API server: there is no kubeconfig. Give kubeconfig, or host and token.", code="no_access"
    )


def _url(name: str, value: str) -> str:
    remedy = "give the URL of an API server, such as 'https://k8s.example.com:6443'."
    try:
        parts = urlsplit(value)
        # a port that is none is only seen when it is asked for
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise OptionError(name, value, remedy) from error
    if not usable or parts.query or parts.fragment:
        raise OptionError(name, value, remedy)
    if parts.username or parts.password:
        raise OptionError(name, f"{parts.scheme}://********@{parts.hostname}", "give the login in the other options.")
    return value.rstrip("/")


def _read(name: str, path: str | None) -> str | None:
    """Return the text of a file that an option or a kubeconfig names."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            name, path, f"the file cannot be read on the host that runs the module ({reason})."
        ) from error


def _from_kubeconfig(source: str, path: str, context: str | None, validate_certs: bool, timeout_s: float) -> Access:
    """Read one cluster and one user from a kubeconfig, as its context says."""
    import yaml

    if os.pathsep in path:
        raise OptionError(source, path, "give one file; several are not merged.")
    try:
        config = yaml.safe_load(_read(source, path) or "")
    except yaml.YAMLError as error:
        raise OptionError(source, path, "it is no YAML file; give a kubeconfig.") from error
    if not isinstance(config, dict):
        raise OptionError(source, path, "it holds no mapping; give a kubeconfig.")
    file = _Kubeconfig(source, path, config)
    name = context or config.get("current-context")
    if not name:
        raise OptionError(source, path, "it has no current-context; name one with context.")
    chosen = file.entry("context", name)
    cluster = file.entry("cluster", chosen.get("cluster"))
    user = file.entry("user", chosen["user"]) if chosen.get("user") else {}
    if cluster.get("tls-server-name"):
        raise OptionError(
            source,
            path,
            f"cluster {chosen['cluster']} sets tls-server-name, which is not supported; name the server so.",
        )
    if user.get("auth-provider"):
        raise OptionError(
            source, path, f"user {chosen['user']} has an auth-provider, which is not supported; use exec or a token."
        )
    token = user.get("token") or (file.text(user, "token", "tokenFile") or "").strip() or None
    cert, key = (
        file.text(user, "client-certificate-data", "client-certificate"),
        file.text(user, "client-key-data", "client-key"),
    )
    if user.get("exec") and not (token or cert):
        token, cert, key = _run_plugin(source, path, chosen["user"], user["exec"], timeout_s)
    return Access(
        url=_url(source, str(cluster.get("server", ""))),
        token=token,
        user=user.get("username"),
        password=user.get("password"),
        ca=file.text(cluster, "certificate-authority-data", "certificate-authority"),
        validate_certs=validate_certs and not cluster.get("insecure-skip-tls-verify", False),
        client_cert=cert,
        client_key=key,
        proxy=cluster.get("proxy-url"),
        timeout_s=timeout_s,
    )


@dataclass(frozen=True)
class _Kubeconfig:
    """A kubeconfig, and which option named it."""

    source: str
    path: str
    config: t.Mapping[str, t.Any] = field(repr=False)

    def entry(self, kind: str, name: t.Any) -> dict[str, t.Any]:
        """Return the context, cluster or user of a name."""
        for entry in self.config.get(f"{kind}s") or []:
            if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(kind), dict):
                return entry[kind]
        if kind == "context":
            known = sorted(
                str(entry.get("name")) for entry in self.config.get("contexts") or [] if isinstance(entry, dict)
            )
            raise OptionError("context", name, f"{self.path} has no such context; it has {', '.join(known) or 'none'}.")
        raise OptionError(self.source, self.path, f"it has no {kind} {name!r}, which its context names.")

    def text(self, holder: t.Mapping[str, t.Any], inline: str, named: str) -> str | None:
        """Return what a key holds in base64, or else the file that another one names, from the kubeconfig's directory."""
        if inline.endswith("-data") and holder.get(inline):
            try:
                return base64.b64decode(holder[inline], validate=True).decode()
            except (binascii.Error, ValueError, TypeError) as error:
                raise OptionError(self.source, self.path, f"its {inline} is not base64 of a text.") from error
        if not holder.get(named):
            return None
        return _read(self.source, os.path.join(os.path.dirname(os.path.abspath(self.path)), holder[named]))


def _run_plugin(
    source: str, path: str, user: str, plugin: t.Mapping[str, t.Any], timeout_s: float
) -> tuple[str | None, str | None, str | None]:
    """Return the token, or certificate and key, that a credential plugin of a kubeconfig gives out."""
    version, command = plugin.get("apiVersion"), str(plugin.get("command", ""))
    if version not in EXEC_VERSIONS or not command:
        raise OptionError(
            source, path, f"the exec of user {user} needs a command and an apiVersion of {' or '.join(EXEC_VERSIONS)}."
        )
    if os.sep in command:
        command = os.path.join(os.path.dirname(os.path.abspath(path)), command)
    more = {str(entry["name"]): str(entry["value"]) for entry in plugin.get("env") or []}
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    failed = f"Failed to get credentials for user {user} of {path} from {command}"
    try:
        ended = subprocess.run(
            [command, *map(str, plugin.get("args") or [])],
            env={**os.environ, **more, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        status = json.loads(ended.stdout)["status"]
        return status.get("token"), status.get("clientCertificateData"), status.get("clientKeyData")
    except subprocess.TimeoutExpired as error:
        raise HeadroomError(
            f"{failed}: no answer in {timeout_s:g} s. Log in anew, or raise timeout_s.", code="no_credentials"
        ) from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[-300:].rstrip(".") or "it said nothing"
        raise HeadroomError(
            f"{failed}: it ended with {error.returncode}: {said}. Run it by hand to see more.", code="no_credentials"
        ) from error
    except OSError as error:
        raise HeadroomError(
            f"{failed}: {error.strerror}. Install it, or give host and token.", code="no_credentials"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeadroomError(
            f"{failed}: it gave no ExecCredential. Run it by hand to see more.", code="no_credentials"
        ) from error
