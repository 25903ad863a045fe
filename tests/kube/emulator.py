"""A Kubernetes API server in miniature, over HTTP or HTTPS, for tests.

It keeps objects by their path and does what the modules depend on: resourceVersion and 409 on a stale one, 404 with a Status for
an object and without one for an unknown API, 409 for a second object of a name, 422 for what ``autoscaling/v2`` forbids, 401 without
the token, 403 where it is told so, JSON merge patches, defaults of ``autoscaling/v2``, canonical quantities, paging, preconditions of
a deletion, fields that its version does not know, which it drops, or refuses where a request asks for that, and fields of a
NetworkPolicy that are empty, which it leaves out.

Limits: there is no controller, so nothing scales and the status stays as it was put. There are no watches, no other patches, no
subresources, no admission, no ``dryRun``, which would be persisted; a request that asks for it is answered with 500. Of field
selectors ``=`` alone is known, and label selectors are not. Validation knows one rule, so that what a module refuses is not proven to
be refused by a real server. Its defaults and quantities are spelled out here once more and not taken from the modules, so that a
mistake there shows.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import re
import ssl
import threading
import typing as t
import uuid
from urllib.parse import parse_qs, urlsplit

from web.server import Handler, Server

Object = dict[str, t.Any]

APIS = {
    "/apis/autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "/apis/apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet", "replicasets": "ReplicaSet"},
    "/apis/policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "/apis/networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "/api/v1": {"events": "Event"},
}
_SELECTOR: t.Any = {"matchLabels": None, "matchExpressions": [{"key": None, "operator": None, "values": None}]}
_PEER = {"podSelector": _SELECTOR, "namespaceSelector": _SELECTOR, "ipBlock": {"cidr": None, "except": None}}
_PORT = {"protocol": None, "port": None, "endPort": None}
_TARGET = dict.fromkeys(("type", "averageUtilization", "averageValue", "value"))
_METRIC = {"metric": {"name": None, "selector": _SELECTOR}, "target": _TARGET}
_REFERENCE = dict.fromkeys(("apiVersion", "kind", "name"))
_SCALING = {
    "stabilizationWindowSeconds": None,
    "selectPolicy": None,
    "policies": [dict.fromkeys(("type", "value", "periodSeconds"))],
    "tolerance": None,
}
# the fields of the specs that are known: what is below each, a list of it, or None for a value
FIELDS: dict[str, t.Any] = {
    "NetworkPolicy": {
        "podSelector": _SELECTOR,
        "policyTypes": None,
        "ingress": [{"from": [_PEER], "ports": [_PORT]}],
        "egress": [{"to": [_PEER], "ports": [_PORT]}],
    },
    "PodDisruptionBudget": {
        "selector": _SELECTOR,
        **dict.fromkeys(("minAvailable", "maxUnavailable", "unhealthyPodEvictionPolicy")),
    },
    "HorizontalPodAutoscaler": {
        "scaleTargetRef": _REFERENCE,
        "minReplicas": None,
        "maxReplicas": None,
        "metrics": [
            {
                "type": None,
                "resource": {"name": None, "target": _TARGET},
                "containerResource": {"name": None, "container": None, "target": _TARGET},
                "pods": _METRIC,
                "object": {**_METRIC, "describedObject": _REFERENCE},
                "external": _METRIC,
            }
        ],
        "behavior": {"scaleUp": _SCALING, "scaleDown": _SCALING},
    },
}
_PATH = re.compile(
    r"(?P<api>/apis?(?:/[^/]+)?/v\w+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)
# how the canonical quantities of the tests are spelled
_SPELLED = {"0.5": "500m", "1000m": "1", "0.05": "50m", "1000": "1k", "0.1": "100m", "1024Mi": "1Gi", "5000m": "5"}


class Answer(Exception):  # noqa: N818
    """Ends a request with an error; ``reason`` is that of the Status, none for an answer that is no Status, ``kind`` what it is about."""

    def __init__(self, status: int, reason: str | None, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.reason = reason


class Emulator(Server):
    """The server. ``minor`` is its version 1.minor, ``token`` what it asks for, and ``hook`` is called with each request before it.

    ``tolerances`` is its feature gate of that name, without which it knows the field and does not keep it.

    ``groups`` are APIs of metrics that it lists, and ``metrics`` what the adapters of these list, by the API; they have no values.

    ``certificate`` is that of the server with its key, and ``client_ca`` who must have signed that of a client.
    """

    def __init__(
        self,
        minor: int = 34,
        token: str = "good-token",
        certificate: tuple[str, str] | None = None,
        client_ca: str | None = None,
    ) -> None:
        self.minor = minor
        self.token = token
        self.apis = dict(APIS)
        self.groups = ["metrics.k8s.io"]
        self.metrics: dict[str, list[str]] = {}
        self.objects: dict[str, Object] = {}
        self.hook: t.Callable[[str, str], None] = lambda method, path: None
        self.defaulting = True
        self.tolerances = True
        self._revision = 100
        self._lock = threading.RLock()
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            if client_ca is not None:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(_handler(self), context)

    def put(self, path: str, item: Object) -> Object:
        """Set the object at a path past the API, as a controller or another client does."""
        with self._lock:
            stored = copy.deepcopy(item)
            metadata = stored.setdefault("metadata", {})
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata["name"], metadata["namespace"] = (
                path.rsplit("/", 1)[1],
                path.split("/namespaces/")[1].split("/")[0],
            )
            self._store(path, stored)
            return copy.deepcopy(self.objects[path])

    def touch(self, path: str) -> None:
        """Give an object a new resourceVersion, as each update of its status does."""
        with self._lock:
            self._store(path, self.objects[path])

    def fail(self, method: str, part: str, status: int, reason: str | None, message: str) -> None:
        """Refuse each request of a method to a path that holds ``part``."""
        former = self.hook

        def hook(given: str, path: str) -> None:
            former(given, path)
            if given == method and part in path:
                raise Answer(status, reason, message)

        self.hook = hook

    def _store(self, path: str, item: Object) -> None:
        self._revision += 1
        item["metadata"]["resourceVersion"] = str(self._revision)
        self.objects[path] = item

    def handle(self, method: str, url: str, headers: t.Mapping[str, str], body: bytes) -> Object:
        """Answer one request."""
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise Answer(401, "Unauthorized", "Unauthorized")
        self.hook(method, parts.path)
        with self._lock:
            if parts.path == "/version":
                return {"major": "1", "minor": str(self.minor), "gitVersion": f"v1.{self.minor}.0"}
            if parts.path == "/apis":
                own = [api.split("/")[2] for api in self.apis if api.startswith("/apis/")]
                served = [{"name": name} for name in own]
                for name in self.groups:
                    version = {"groupVersion": f"{name}/v1beta1", "version": "v1beta1"}
                    served.append({"name": name, "versions": [version], "preferredVersion": version})
                return {"kind": "APIGroupList", "groups": served}
            if parts.path in [f"/apis/{name}/v1beta1" for name in self.groups]:
                listed = self.metrics.get(parts.path.split("/")[2], [])
                return {"kind": "APIResourceList", "resources": [{"name": name} for name in listed]}
            if parts.path.startswith("/api/v1/namespaces/") and parts.path.count("/") == 4:
                name = parts.path.rsplit("/", 1)[1]
                if name == "nowhere":
                    raise Answer(404, "NotFound", f'namespaces "{name}" not found', "namespaces")
                return {"kind": "Namespace", "metadata": {"name": name}}
            match = _PATH.fullmatch(parts.path)
            kinds = self.apis.get(match.group("api"), {}) if match else {}
            if match is None or match.group("plural") not in kinds:
                raise Answer(404, None, "404 page not found")
            assert "dryRun" not in query, "a dry run is not known here and would be persisted"
            payload = json.loads(body) if body else {}
            strict = self.minor >= 25 and query.get("fieldValidation") == "Strict"
            if match.group("name"):
                return self._one(method, parts.path, headers, payload, strict)
            if method == "POST":
                return self._create(parts.path, match.group("namespace"), kinds[match.group("plural")], payload, strict)
            return self._list(parts.path, query)

    def _list(self, path: str, query: t.Mapping[str, str]) -> Object:
        items = [item for where, item in sorted(self.objects.items()) if where.rsplit("/", 1)[0] == path]
        for term in query.get("fieldSelector", "").split(","):
            if term:
                field, value = term.split("=")
                items = [item for item in items if _field(item, field) == value]
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 0)) or len(items)
        more = {"continue": str(start + limit)} if start + limit < len(items) else {}
        return {"kind": "List", "metadata": more, "items": copy.deepcopy(items[start : start + limit])}

    def _create(self, path: str, namespace: str, kind: str, item: Object, strict: bool) -> Object:
        where = f"{path}/{item['metadata']['name']}"
        if namespace == "nowhere":
            raise Answer(404, "NotFound", f'namespaces "{namespace}" not found', "namespaces")
        if item.get("kind") != kind:
            raise Answer(400, "BadRequest", f"the object provided is no {kind}")
        if where in self.objects:
            raise Answer(409, "AlreadyExists", f'"{item["metadata"]["name"]}" already exists')
        self._decode(item, 400 if strict else None)
        self._prepare(item)
        return self.put(where, item)

    def _one(self, method: str, path: str, headers: t.Mapping[str, str], payload: Object, strict: bool) -> Object:
        present = self.objects.get(path)
        if present is None:
            raise Answer(404, "NotFound", f'"{path.rsplit("/", 1)[1]}" not found')
        if method == "GET":
            return copy.deepcopy(present)
        if method == "DELETE":
            for key, value in payload.get("preconditions", {}).items():
                if present["metadata"][key] != value:
                    raise Answer(409, "Conflict", f"the {key} in the precondition does not match")
            del self.objects[path]
            return {"kind": "Status", "status": "Success"}
        if method != "PATCH" or headers.get("Content-Type") != "application/merge-patch+json":
            raise Answer(415, "UnsupportedMediaType", "only merge patches are known here")
        version = payload.get("metadata", {}).get("resourceVersion")
        if version is not None and version != present["metadata"]["resourceVersion"]:
            raise Answer(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        item = copy.deepcopy(merged(present, payload))
        self._decode(item, 422 if strict else None)
        self._prepare(item)
        self._store(path, item)
        return copy.deepcopy(item)

    def _decode(self, item: Object, refusal: int | None) -> None:
        """Drop the fields that the version does not know, or refuse them with a status."""
        known = copy.deepcopy(FIELDS.get(item.get("kind", "")))
        if item.get("kind") == "HorizontalPodAutoscaler" and self.minor < 33:
            for rules in known["behavior"].values():
                rules.pop("tolerance", None)
        unknown = _unknown(item.get("spec"), known, "spec")
        if unknown and refusal is not None:
            reason = "BadRequest" if refusal == 400 else "Invalid"
            fields = ", ".join(f'unknown field "{name}"' for name in unknown)
            raise Answer(refusal, reason, f"strict decoding error: {fields}")

    def _prepare(self, item: Object) -> None:
        """Fill in defaults, leave out what is empty, and validate."""
        if item.get("kind") == "NetworkPolicy":
            item["spec"] = _network_policy(item["spec"])
        if item.get("kind") != "HorizontalPodAutoscaler":
            return
        spec = item["spec"]
        for rules in (spec.get("behavior") or {}).values():
            if not self.tolerances:
                rules.pop("tolerance", None)
        if self.defaulting:
            _default(spec)
            _spell(spec)
        if spec["maxReplicas"] < spec.get("minReplicas", 1):
            raise Answer(
                422, "Invalid", "spec.maxReplicas: Invalid value: must be greater than or equal to `minReplicas`"
            )


def _unknown(value: t.Any, known: t.Any, path: str) -> list[str]:
    """Take the fields that are not known out of a value, and return their paths."""
    if isinstance(value, list) and isinstance(known, list):
        return [name for index, one in enumerate(value) for name in _unknown(one, known[0], f"{path}[{index}]")]
    if not isinstance(value, dict) or not isinstance(known, dict):
        return []
    found = []
    for key in list(value):
        if key in known:
            found += _unknown(value[key], known[key], f"{path}.{key}")
        else:
            del value[key]
            found.append(f"{path}.{key}")
    return found


def _network_policy(spec: Object) -> Object:
    """Return the spec of a NetworkPolicy with its defaults, and without the empty fields that its type leaves out."""
    result = {"podSelector": {}, **_without_empty(spec)}
    if not result.get("policyTypes"):
        result["policyTypes"] = ["Ingress", *(["Egress"] if result.get("egress") else [])]
    for rule in [*result.get("ingress", ()), *result.get("egress", ())]:
        for port in rule.get("ports", ()):
            port.setdefault("protocol", "TCP")
    return result


def _without_empty(value: t.Any) -> t.Any:
    if isinstance(value, list):
        return [_without_empty(one) for one in value]
    if not isinstance(value, dict):
        return value
    left_out = (
        "ingress",
        "egress",
        "from",
        "to",
        "ports",
        "except",
        "policyTypes",
        "matchLabels",
        "matchExpressions",
        "values",
    )
    return {
        key: _without_empty(one) for key, one in value.items() if one is not None and not (key in left_out and not one)
    }


def _default(spec: Object) -> None:
    spec.setdefault("minReplicas", 1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    if spec.get("behavior") is None:
        spec.pop("behavior", None)
        return
    percent = {"type": "Percent", "value": 100, "periodSeconds": 15}
    pods = {"type": "Pods", "value": 4, "periodSeconds": 15}
    for direction, policies in (("scaleUp", [pods, percent]), ("scaleDown", [percent])):
        rules = spec["behavior"].setdefault(direction, {})
        rules.setdefault("selectPolicy", "Max")
        rules.setdefault("policies", policies)
    spec["behavior"]["scaleUp"].setdefault("stabilizationWindowSeconds", 0)


def _spell(value: t.Any) -> None:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(item, str) and key in ("value", "averageValue", "tolerance"):
            value[key] = _SPELLED.get(item, item)
        _spell(item)


def _field(item: t.Any, path: str) -> t.Any:
    for part in path.split("."):
        item = (item or {}).get(part)
    return item


def merged(target: t.Any, patch: t.Any) -> t.Any:
    """Apply a JSON merge patch, as RFC 7396 defines it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _handler(emulator: Emulator) -> type[Handler]:
    class Requests(Handler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, answer = 200, json.dumps(emulator.handle(self.command, self.path, self.headers, body))
            except Answer as error:
                status, answer = error.status, str(error)
                if error.reason is not None:
                    said = {
                        "kind": "Status",
                        "status": "Failure",
                        "reason": error.reason,
                        "message": str(error),
                        "details": {"kind": error.kind},
                        "code": status,
                    }
                    answer = json.dumps(said)
            except Exception as error:  # noqa: BLE001
                status, answer = 500, json.dumps({"kind": "Status", "message": f"{type(error).__name__}: {error}"})
            with contextlib.suppress(ConnectionError):
                self.send(status, answer)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    return Requests


def certificate(folder: t.Any) -> tuple[str, str]:
    """Make a key and a certificate for 127.0.0.1 that signs itself, and return the paths of the certificate and the key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emulated")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "server.pem", folder / "server.key"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(cert_path), str(key_path)
