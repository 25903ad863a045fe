# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module against kmock, an emulator of the Kubernetes API that others made: what goes over the wire is understood there too.

It knows neither defaults, canonical quantities, resourceVersions nor validation, and what is sent as a dry run it keeps. So it proves
the shape of requests and answers, that the module needs no default of a server, and that check mode sends nothing at all.
"""

from __future__ import annotations

import asyncio
import json
import threading
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.modules import hpa

kmock = pytest.importorskip("kmock")

SPEC = {
    "scaleTargetRef": {"name": "app"},
    "maxReplicas": 5,
    "metrics": [
        {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "0.5"}}}
    ],
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
}
VERBS = {"get", "list", "create", "patch", "delete"}


class Server:
    """kmock in a thread of its own: its address, its objects and the requests that it got."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self.emulator: t.Any = None
        self.url = ""

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with kmock.KubernetesEmulator() as self.emulator, kmock.Server(self.emulator, port=0) as server:
            kinds = {
                "autoscaling/v2/horizontalpodautoscalers": "HorizontalPodAutoscaler",
                "apps/v1/deployments": "Deployment",
                "policy/v1/poddisruptionbudgets": "PodDisruptionBudget",
            }
            for resource, kind in kinds.items():
                self.emulator.resources[resource] = {"kind": kind, "namespaced": True, "verbs": VERBS}
            self.url = str(server.url).rstrip("/")
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_raised: t.Any) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def writes(self) -> list[str]:
        """The methods of the requests that could change anything."""
        methods = [str(getattr(request.method, "value", request.method)).upper() for request in list(self.emulator)]
        return [method for method in methods if method != "GET"]


def run(server: Server, capsys: pytest.CaptureFixture[str], **params: t.Any) -> dict[str, t.Any]:
    """Run the module and return its result."""
    given = {"name": "app", "namespace": "shop", "host": server.url, "token": "x", **params}
    with patch_module_args(given), pytest.raises(SystemExit) as ended:
        hpa.main()
    result = json.loads(capsys.readouterr().out)
    assert not ended.value.code, result
    return result


def test_a_life_of_an_autoscaler(capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        assert run(server, capsys, spec=SPEC, _ansible_check_mode=True)["action"] == "create"
        assert server.writes() == []
        assert run(server, capsys, spec=SPEC)["action"] == "create"
        assert run(server, capsys, spec=SPEC)["action"] == "none"
        assert server.writes() == ["POST"]
        legacy = {key: value for key, value in SPEC.items() if key != "behavior"}
        assert run(server, capsys, spec=legacy)["action"] == "patch"
        assert run(server, capsys, spec={**SPEC, "maxReplicas": 9})["action"] == "patch"
        assert run(server, capsys, spec={**SPEC, "maxReplicas": 9})["action"] == "none"
        assert run(server, capsys, state="absent")["action"] == "delete"
        assert run(server, capsys, state="absent")["action"] == "none"
        assert server.writes() == ["POST", "PATCH", "PATCH", "DELETE"]
