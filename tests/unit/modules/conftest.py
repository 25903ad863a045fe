"""An API server for tests of modules: the emulator, or a real one where HEADROOM_KUBECONFIG names a kubeconfig."""

from __future__ import annotations

import copy
import os
import typing as t
import uuid

import pytest
import requests
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.client import Client
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.connection import parse_access
from kube.emulator import Emulator, Object, merged

KUBECONFIG = os.environ.get("HEADROOM_KUBECONFIG")
HPAS = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"
PLACES = {
    "HorizontalPodAutoscaler": ("autoscaling/v2", HPAS),
    "Deployment": ("apps/v1", "/apis/apps/v1/namespaces/{}/deployments"),
    "PodDisruptionBudget": ("policy/v1", "/apis/policy/v1/namespaces/{}/poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io/v1", "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"),
    "Event": ("v1", "/api/v1/namespaces/{}/events"),
}


class Api:
    """A namespace of an API server, which a test fills and a module is pointed at.

    ``params`` are the connection options of a module, ``sent`` the requests that went out and ``warned`` the warnings of modules since
    the last :meth:`forget`.
    """

    def __init__(self, params: dict[str, t.Any], namespace: str, emulator: Emulator | None) -> None:
        self.params = params
        self.namespace = namespace
        self._emulator = emulator
        self.sent: list[tuple[str, str]] = []
        self.warned: list[str] = []

    @property
    def emulator(self) -> Emulator:
        """The emulator; a test that makes a server fail has nothing to do on a real one."""
        if self._emulator is None:
            pytest.skip("a real API server is not told to fail")
        return self._emulator

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that could change anything."""
        return [request for request in self.sent if request[0] != "GET"]

    def forget(self) -> None:
        """Forget the requests and warnings so far."""
        self.sent.clear()
        self.warned.clear()

    def path(self, kind: str, name: str) -> str:
        """Where an object is."""
        return f"{PLACES[kind][1].format(self.namespace)}/{name}"

    def put(self, kind: str, name: str, item: Object) -> None:
        """Put an object there, past the module."""
        full = {"apiVersion": PLACES[kind][0], "kind": kind, **copy.deepcopy(item)}
        full["metadata"] = {**full.get("metadata", {}), "name": name, "namespace": self.namespace}
        if self._emulator is not None:
            self._emulator.put(self.path(kind, name), full)
        else:
            with self._client() as client:
                client.create(PLACES[kind][1].format(self.namespace), full, f"put {name}")
        self.forget()

    def change(self, name: str, spec: Object) -> None:
        """Change the spec of an HPA, past the module."""
        path = self.path("HorizontalPodAutoscaler", name)
        if self._emulator is not None:
            self._emulator.put(path, merged(self._emulator.objects[path], {"spec": spec}))
        else:
            with self._client() as client:
                client.patch(path, {"spec": spec}, f"change {name}")
        self.forget()

    def hpa(self, name: str) -> Object | None:
        """The HPA of a name as it is stored."""
        return self.get("HorizontalPodAutoscaler", name)

    def get(self, kind: str, name: str) -> Object | None:
        """An object as it is stored."""
        path = self.path(kind, name)
        if self._emulator is not None:
            return copy.deepcopy(self._emulator.objects.get(path))
        with self._client() as client:
            return client.find(path, f"read {name}")

    def groups(self) -> set[str]:
        """The groups of APIs that are served."""
        with self._client() as client:
            return {group["name"] for group in client.get("/apis", "read the APIs")["groups"]}

    def _client(self) -> Client:
        params = dict.fromkeys(("kubeconfig", "context", "host", "token", "ca_cert", "client_cert", "client_key"))
        return Client(parse_access({**params, "validate_certs": True, "timeout_s": 30.0, **self.params}))


@pytest.fixture(name="api")
def api_fixture(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Api]:
    """Give an empty namespace, and note each request that is sent and each warning."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    if KUBECONFIG:
        api = Api({"kubeconfig": KUBECONFIG}, f"headroom-{uuid.uuid4().hex[:12]}", None)
        with api._client() as client:
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": api.namespace}}
            client.create("/api/v1/namespaces", body, "make a namespace")
        _note(monkeypatch, api)
        yield api
        with api._client() as client:
            client.delete(f"/api/v1/namespaces/{api.namespace}", {}, "remove the namespace")
        return
    with Emulator() as emulator:
        api = Api({"host": emulator.url, "token": emulator.token}, "shop", emulator)
        _note(monkeypatch, api)
        yield api


def _note(monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    send = requests.Session.send

    def noting(session: t.Any, request: t.Any, **options: t.Any) -> t.Any:
        api.sent.append((request.method, request.path_url.partition("?")[0]))
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", noting)
    # Ansible itself keeps them for the whole process, in which other modules are run too
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, warning: api.warned.append(warning))
