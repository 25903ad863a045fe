# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Reads what an autoscaler works among: its target, other autoscalers, disruption budgets. Nothing is written."""

from __future__ import annotations

import typing as t

from .client import HPA, Client, Refused
from .judge import Surroundings

# the kinds of apps/v1 that are looked into
_PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "ReplicaSet": "replicasets"}


def hpas_path(namespace: str) -> str:
    """Return where the autoscalers of a namespace are."""
    return f"{HPA}/namespaces/{namespace}/horizontalpodautoscalers"


def workload_path(namespace: str, reference: t.Mapping[str, t.Any]) -> str | None:
    """Return where the workload is that a reference names; ``None`` for a kind that is not looked into."""
    plural = _PLURALS.get(reference["kind"])
    if plural is None or reference.get("apiVersion") != "apps/v1":
        return None
    return f"/apis/apps/v1/namespaces/{namespace}/{plural}/{reference['name']}"


def look_around(client: Client, namespace: str, name: str, target: t.Mapping[str, t.Any]) -> Surroundings:
    """Read what the autoscaler ``name`` with this target works among.

    What the account may not read, or the server does not have, is named in ``not_read``.

    :raises HeadroomError: when the server cannot be reached.
    """
    not_read: dict[str, str] = {}
    workload, missing = None, False
    path = workload_path(namespace, target)
    if path is None:
        not_read["target"] = f"{target['kind']} of {target.get('apiVersion')} is not a kind that is looked into."
    else:
        workload = _try(not_read, "target", client.find, path, f"read {target['kind']} {target['name']}")
        missing = workload is None and "target" not in not_read
    listed = _try(not_read, "other HPAs", client.list, hpas_path(namespace), "list the HPAs")
    others = [item for item in listed or [] if item["metadata"]["name"] != name]
    return Surroundings(
        workload=workload,
        missing=missing,
        others=tuple(others),
        workloads=_other_workloads(client, namespace, others, not_read) if workload else {},
        budgets=tuple(
            _try(
                not_read,
                "disruption budgets",
                client.list,
                f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
                "list the PodDisruptionBudgets",
            )
            or ()
        ),
        not_read=not_read,
    )


def _other_workloads(
    client: Client, namespace: str, others: t.Sequence[t.Mapping[str, t.Any]], not_read: dict[str, str]
) -> dict[str, t.Any]:
    """Read the targets of other autoscalers, one list per kind; by the name of the autoscaler."""
    targets = {item["metadata"]["name"]: item["spec"]["scaleTargetRef"] for item in others}
    for name, target in sorted(targets.items()):
        if workload_path(namespace, target) is None:
            kind = f"{target['kind']} of {target.get('apiVersion')}"
            not_read[f"pods of HPA {name}"] = f"{kind} is not a kind that is looked into."
    found: dict[str, dict[str, t.Any]] = {}
    for kind in sorted({target["kind"] for target in targets.values() if workload_path(namespace, target)}):
        path = f"/apis/apps/v1/namespaces/{namespace}/{_PLURALS[kind]}"
        items = _try(not_read, f"pods of other HPAs' {kind}s", client.list, path, f"list the {kind}s") or []
        found[kind] = {item["metadata"]["name"]: item for item in items}
    return {
        name: found[target["kind"]][target["name"]]
        for name, target in targets.items()
        if workload_path(namespace, target) and target["name"] in found[target["kind"]]
    }


def _try(not_read: dict[str, str], what: str, read: t.Callable[..., t.Any], path: str, purpose: str) -> t.Any:
    try:
        return read(path, purpose)
    except Refused as error:
        not_read[what] = str(error)
        return None
