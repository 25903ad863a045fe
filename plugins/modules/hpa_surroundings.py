#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check and declare what an autoscaled Deployment works among."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hpa_surroundings
short_description: Check and declare what an autoscaled Deployment works among
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Checks what a HorizontalPodAutoscaler depends on. That is resources and probes of the Deployment, and the APIs that its metrics come
    from.
  - Declares the PodDisruptionBudget and the NetworkPolicy of the Deployment's pods, which have its name and its selector. Where they are
    as declared, no write request is sent.
  - A field that the API server does not know is refused by it before anything is stored, from Kubernetes 1.25 on. Fields of rules that
    the API does not have are refused before anything is sent.
  - The Deployment itself is not changed. What it lacks is in RV(findings), which are warnings too.
  - Needs the rights to C(get) C(deployments), and to C(get), C(create) and C(patch) C(poddisruptionbudgets) and C(networkpolicies).
extends_documentation_fragment:
  - headroom.scale.kubernetes
  - headroom.scale.attributes
attributes:
  check_mode:
    support: full
    details:
      - Reads and plans as usual and sends no write request.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the Deployment, and of what is declared for it.
    type: str
    required: true
    version_added: 0.1.0
  namespace:
    description:
      - Its namespace.
    type: str
    default: default
    version_added: 0.1.0
  container:
    description:
      - The container that is checked. By default the first one.
    type: str
    version_added: 0.1.0
  requests:
    description:
      - Requests that it must have, quantities by resource, such as V(200m) of C(cpu).
      - A limit without a request is the request, as it is to the API server.
    type: dict
    default: {}
    version_added: 0.1.0
  limits:
    description:
      - Limits that it must have, as O(requests).
    type: dict
    default: {}
    version_added: 0.1.0
  probes:
    description:
      - Probes that it must have.
    type: list
    elements: str
    choices: [readiness, liveness, startup]
    default: [readiness]
    version_added: 0.1.0
  metrics:
    description:
      - Types of the metrics that the autoscaler has. The APIs that answer for them must be served.
      - By default those of O(hpa_metrics), and V(Resource) without any.
    type: list
    elements: str
    choices: [Resource, ContainerResource, Pods, Object, External]
    version_added: 0.1.0
  hpa_metrics:
    description:
      - The metrics that the autoscaler has, as C(spec.metrics) of M(headroom.scale.hpa). Each one of type C(Pods), C(Object) and
        C(External) must be in the list of metrics that its adapter serves.
      - An adapter that does not list its metrics is named in RV(not_read), and they are not checked.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
  budget:
    description:
      - The PodDisruptionBudget. One of its suboptions is required. Without it none is declared, and one that is there is left alone.
    type: dict
    version_added: 0.1.0
    suboptions:
      min_available:
        description:
          - Pods that must stay, a number or a percentage.
        type: str
      max_unavailable:
        description:
          - Pods that may go at a time, a number or a percentage.
        type: str
  network_policy:
    description:
      - The NetworkPolicy. One of its suboptions is required. Without it none is declared, and one that is there is left alone.
    type: dict
    version_added: 0.1.0
    suboptions:
      ingress:
        description:
          - Rules for what may come in, in the words of the API. An empty list lets nothing in. Without it, incoming traffic is not ruled.
        type: list
        elements: dict
      egress:
        description:
          - Rules for what may go out, in the words of the API. An empty list lets nothing out. Without it, outgoing traffic is not ruled.
        type: list
        elements: dict
seealso:
  - module: headroom.scale.hpa
"""

EXAMPLES = r"""
- name: Have what an autoscaled service needs
  headroom.scale.hpa_surroundings:
    name: bill-inquiry-service
    namespace: phonebill
    requests:
      cpu: 500m
      memory: 1Gi
    limits:
      cpu: 2000m
      memory: 2Gi
    probes: [readiness, liveness]
    hpa_metrics:
      - type: Pods
        pods:
          metric:
            name: active_connections
          target:
            type: AverageValue
            averageValue: "30"
    budget:
      min_available: "2"
    network_policy:
      ingress:
        - from:
            - namespaceSelector:
                matchLabels:
                  kubernetes.io/metadata.name: kube-system
          ports:
            - port: 8080
"""

RETURN = r"""
ready:
  description: Whether nothing is lacking.
  returned: success
  type: bool
  sample: false
summary:
  description: What was done and what is lacking, in a few sentences.
  returned: success
  type: str
  sample: "Deployment phonebill/bill-inquiry-service: Nothing to change."
findings:
  description:
    - What is lacking, each with a stable code, a sentence, and names and figures.
    - The codes are V(target_missing), V(container_missing), V(requests_differ), V(limits_differ), V(probe_missing),
      V(metrics_api_missing) (no adapter serves the API), V(metrics_api_failing) (its metrics cannot be listed) and V(metric_missing) (the
      adapter does not serve this one).
  returned: success
  type: list
  elements: dict
  sample:
    - api: custom.metrics.k8s.io
      code: metrics_api_missing
      message: The API server does not serve custom.metrics.k8s.io, which metrics of type Pods need; install an adapter for it.
not_read:
  description: What could not be checked, and why.
  returned: success
  type: dict
  sample: {metrics of external.metrics.k8s.io: The adapter does not list its metrics.}
plan:
  description: What is changed, or would be in check mode. None for what was not there.
  returned: success
  type: list
  elements: dict
  sample:
    - what: PodDisruptionBudget bill-inquiry-service
      before: null
      after: {minAvailable: 2, selector: {matchLabels: {app: bill-inquiry-service}}}
errors:
  description: Why it failed, with C(code) and C(message). The codes are those of M(headroom.scale.hpa).
  returned: failure
  type: list
  elements: dict
  sample:
    - code: forbidden
      message: >-
        Failed to create PodDisruptionBudget shop on https://k8s.example.com:6443: poddisruptionbudgets.policy is forbidden. Give the
        account this right by a Role and a RoleBinding.
      status: 403
"""

import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.surround import (  # noqa: E402
    look,
    parse_options,
    surroundings_spec,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def work(module: AnsibleModule) -> dict[str, t.Any]:
    """Do the run, and make its findings warnings."""
    result = look(parse_options(module.params), module.check_mode)
    for finding in result["findings"]:
        module.warn(finding["message"])
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **surroundings_spec().to_kwargs())
    run(module, work)


if __name__ == "__main__":
    main()
