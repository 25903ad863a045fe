#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declare a HorizontalPodAutoscaler of Kubernetes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hpa
short_description: Declare a HorizontalPodAutoscaler of Kubernetes
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Creates, changes and deletes a HorizontalPodAutoscaler (C(autoscaling/v2)), with all kinds of metrics and its behaviour.
  - The object is compared by its meaning. Defaults that the API server fills in, the spelling of quantities (V(0.5) is V(500m))
    and the order of metrics and policies are no change, and where nothing differs no write request is sent.
  - What the API server would refuse is refused before anything is sent. What it has stored is compared with what was declared, so
    that a field that it dropped is a failure and not a silent difference.
  - The spec is declared as a whole. Metrics and behaviour that are not in it are taken off. Labels, annotations and the status are
    left alone.
  - Looks around and tells in RV(findings), which are warnings too, what would keep the autoscaler from working well.
  - Needs the rights to C(get) and, as needed, C(create), C(patch) and C(delete) C(horizontalpodautoscalers). What it may not
    look at besides is in RV(not_read). These are C(list) of C(horizontalpodautoscalers), of C(poddisruptionbudgets), and C(get)
    and C(list) of the C(deployments), C(statefulsets) and C(replicasets) that are scaled, and C(get) of the C(namespaces) for an
    autoscaler that is not there yet. Other kinds of targets are in RV(not_read) too.
extends_documentation_fragment:
  - headroom.scale.kubernetes
  - headroom.scale.attributes
attributes:
  check_mode:
    support: full
    details:
      - Reads and plans as usual and sends no write request, not one with C(dryRun) either. What admission webhooks, quotas and
        feature gates of the API server would say is not known then.
  diff_mode:
    support: full
    details:
      - One line for each metric, policy and limit.
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the autoscaler.
    type: str
    required: true
    version_added: 0.1.0
  namespace:
    description:
      - Its namespace, which must be there.
    type: str
    default: default
    version_added: 0.1.0
  state:
    description:
      - V(present) has it as declared, V(absent) deletes it. Its target keeps the replicas that it has.
    type: str
    choices: [present, absent]
    default: present
    version_added: 0.1.0
  spec:
    description:
      - The spec, in the words of the API, so that a manifest can be pasted here. Required with O(state=present).
    type: dict
    version_added: 0.1.0
    suboptions:
      scaleTargetRef:
        description:
          - What is scaled, in the same namespace.
        type: dict
        required: true
        suboptions:
          apiVersion:
            description:
              - Its group and version.
            type: str
            default: apps/v1
          kind:
            description:
              - Its kind. C(Deployment), C(StatefulSet) and C(ReplicaSet) are looked into for RV(findings).
            type: str
            default: Deployment
          name:
            description:
              - Its name.
            type: str
            required: true
      minReplicas:
        description:
          - Fewest replicas, at least 1. V(0) needs a metric of type C(Object) or C(External), and the feature gate
            C(HPAScaleToZero) on the API server.
        type: int
        default: 1
      maxReplicas:
        description:
          - Most replicas, at least O(spec.minReplicas).
        type: int
        required: true
      metrics:
        description:
          - What the replicas are computed from. The metric that asks for the most wins. By default, and when empty, it is 80 percent
            of the requested cpu.
        type: list
        elements: dict
        suboptions:
          type:
            description:
              - Kind of the metric, which is given in the suboption of the same name.
            type: str
            required: true
            choices: [Resource, ContainerResource, Pods, Object, External]
          resource:
            description:
              - A resource of all containers of the pods. For V(Resource).
            type: dict
            suboptions:
              name:
                description:
                  - Name of the resource, such as V(cpu) or V(memory).
                type: str
                required: true
              target:
                description:
                  - What the metric is to be.
                type: dict
                required: true
                suboptions:
                  type:
                    description:
                      - Which value the target has.
                    type: str
                    required: true
                    choices: [Utilization, AverageValue, Value]
                  averageUtilization:
                    description:
                      - Use in percent of the request, over all pods, above 0. Belongs to V(Utilization), for C(Resource) and
                        C(ContainerResource) only.
                    type: int
                  averageValue:
                    description:
                      - Quantity per pod, above 0. Belongs to V(AverageValue).
                    type: str
                  value:
                    description:
                      - Quantity in all, above 0. Belongs to V(Value), for C(Object) and C(External) only.
                    type: str
          containerResource:
            description:
              - A resource of one container of the pods. For V(ContainerResource).
            type: dict
            suboptions:
              name:
                description:
                  - Name of the resource, such as V(cpu) or V(memory).
                type: str
                required: true
              container:
                description:
                  - Name of the container.
                type: str
                required: true
              target:
                description:
                  - What the metric is to be.
                type: dict
                required: true
                suboptions:
                  type:
                    description:
                      - Which value the target has.
                    type: str
                    required: true
                    choices: [Utilization, AverageValue, Value]
                  averageUtilization:
                    description:
                      - Use in percent of the request, over all pods, above 0. Belongs to V(Utilization), for C(Resource) and
                        C(ContainerResource) only.
                    type: int
                  averageValue:
                    description:
                      - Quantity per pod, above 0. Belongs to V(AverageValue).
                    type: str
                  value:
                    description:
                      - Quantity in all, above 0. Belongs to V(Value), for C(Object) and C(External) only.
                    type: str
          pods:
            description:
              - A metric that each pod has, averaged over them. For V(Pods).
            type: dict
            suboptions:
              metric:
                description:
                  - Which metric it is.
                type: dict
                required: true
                suboptions:
                  name:
                    description:
                      - Name of the metric.
                    type: str
                    required: true
                  selector:
                    description:
                      - Labels of the series that are meant. Without it, all of them.
                    type: dict
                    suboptions:
                      matchLabels:
                        description:
                          - Labels and the values that they must have.
                        type: dict
                      matchExpressions:
                        description:
                          - More conditions, all of which must hold.
                        type: list
                        elements: dict
                        suboptions:
                          key:
                            description:
                              - The label.
                            type: str
                            required: true
                          operator:
                            description:
                              - The condition.
                            type: str
                            required: true
                            choices: [In, NotIn, Exists, DoesNotExist]
                          values:
                            description:
                              - Values for V(In) and V(NotIn).
                            type: list
                            elements: str
              target:
                description:
                  - What the metric is to be.
                type: dict
                required: true
                suboptions:
                  type:
                    description:
                      - Which value the target has.
                    type: str
                    required: true
                    choices: [Utilization, AverageValue, Value]
                  averageUtilization:
                    description:
                      - Use in percent of the request, over all pods, above 0. Belongs to V(Utilization), for C(Resource) and
                        C(ContainerResource) only.
                    type: int
                  averageValue:
                    description:
                      - Quantity per pod, above 0. Belongs to V(AverageValue).
                    type: str
                  value:
                    description:
                      - Quantity in all, above 0. Belongs to V(Value), for C(Object) and C(External) only.
                    type: str
          object:
            description:
              - A metric of one object of the API. For V(Object).
            type: dict
            suboptions:
              metric:
                description:
                  - Which metric it is.
                type: dict
                required: true
                suboptions:
                  name:
                    description:
                      - Name of the metric.
                    type: str
                    required: true
                  selector:
                    description:
                      - Labels of the series that are meant. Without it, all of them.
                    type: dict
                    suboptions:
                      matchLabels:
                        description:
                          - Labels and the values that they must have.
                        type: dict
                      matchExpressions:
                        description:
                          - More conditions, all of which must hold.
                        type: list
                        elements: dict
                        suboptions:
                          key:
                            description:
                              - The label.
                            type: str
                            required: true
                          operator:
                            description:
                              - The condition.
                            type: str
                            required: true
                            choices: [In, NotIn, Exists, DoesNotExist]
                          values:
                            description:
                              - Values for V(In) and V(NotIn).
                            type: list
                            elements: str
              describedObject:
                description:
                  - The object, in the same namespace.
                type: dict
                required: true
                suboptions:
                  apiVersion:
                    description:
                      - Its group and version, such as V(networking.k8s.io/v1).
                    type: str
                  kind:
                    description:
                      - Its kind, such as V(Ingress).
                    type: str
                    required: true
                  name:
                    description:
                      - Its name.
                    type: str
                    required: true
              target:
                description:
                  - What the metric is to be.
                type: dict
                required: true
                suboptions:
                  type:
                    description:
                      - Which value the target has.
                    type: str
                    required: true
                    choices: [Utilization, AverageValue, Value]
                  averageUtilization:
                    description:
                      - Use in percent of the request, over all pods, above 0. Belongs to V(Utilization), for C(Resource) and
                        C(ContainerResource) only.
                    type: int
                  averageValue:
                    description:
                      - Quantity per pod, above 0. Belongs to V(AverageValue).
                    type: str
                  value:
                    description:
                      - Quantity in all, above 0. Belongs to V(Value), for C(Object) and C(External) only.
                    type: str
          external:
            description:
              - A metric from outside of the cluster. For V(External).
            type: dict
            suboptions:
              metric:
                description:
                  - Which metric it is.
                type: dict
                required: true
                suboptions:
                  name:
                    description:
                      - Name of the metric.
                    type: str
                    required: true
                  selector:
                    description:
                      - Labels of the series that are meant. Without it, all of them.
                    type: dict
                    suboptions:
                      matchLabels:
                        description:
                          - Labels and the values that they must have.
                        type: dict
                      matchExpressions:
                        description:
                          - More conditions, all of which must hold.
                        type: list
                        elements: dict
                        suboptions:
                          key:
                            description:
                              - The label.
                            type: str
                            required: true
                          operator:
                            description:
                              - The condition.
                            type: str
                            required: true
                            choices: [In, NotIn, Exists, DoesNotExist]
                          values:
                            description:
                              - Values for V(In) and V(NotIn).
                            type: list
                            elements: str
              target:
                description:
                  - What the metric is to be.
                type: dict
                required: true
                suboptions:
                  type:
                    description:
                      - Which value the target has.
                    type: str
                    required: true
                    choices: [Utilization, AverageValue, Value]
                  averageUtilization:
                    description:
                      - Use in percent of the request, over all pods, above 0. Belongs to V(Utilization), for C(Resource) and
                        C(ContainerResource) only.
                    type: int
                  averageValue:
                    description:
                      - Quantity per pod, above 0. Belongs to V(AverageValue).
                    type: str
                  value:
                    description:
                      - Quantity in all, above 0. Belongs to V(Value), for C(Object) and C(External) only.
                    type: str
      behavior:
        description:
          - How fast the replicas may change. Without it, scaling up is limited to twice the replicas or 4, and scaling down by the
            controller's window alone.
        type: dict
        suboptions:
          scaleUp:
            description:
              - Limits on scaling up.
            type: dict
            suboptions:
              stabilizationWindowSeconds:
                description:
                  - Seconds that are looked back for the lowest recommendation, from 0 to 3600. By default
                    V(0).
                type: int
              selectPolicy:
                description:
                  - Which policy holds, the one that allows the largest change, the smallest one, or none, so that the direction is off.
                    By default V(Max).
                type: str
                choices: [Max, Min, Disabled]
              policies:
                description:
                  - What is allowed at a time. By default 4 pods and 100 percent per 15 s.
                type: list
                elements: dict
                suboptions:
                  type:
                    description:
                      - Whether the value is a number of pods or a percentage of those there are.
                    type: str
                    required: true
                    choices: [Pods, Percent]
                  value:
                    description:
                      - How many, above 0.
                    type: int
                    required: true
                  periodSeconds:
                    description:
                      - Seconds in which no more may change, from 1 to 1800.
                    type: int
                    required: true
              tolerance:
                description:
                  - Quantity of 0 or more, the share by which a metric may be above its target before anything changes, such as V(0.05). By
                    default that of the controller, which is 0.1 unless it was told otherwise.
                  - The API server must be Kubernetes 1.33 or later with the feature gate C(HPAConfigurableTolerance) on.
                type: str
          scaleDown:
            description:
              - Limits on scaling down.
            type: dict
            suboptions:
              stabilizationWindowSeconds:
                description:
                  - Seconds that are looked back for the highest recommendation, from 0 to 3600. By default
                    that of the controller, which is 300 unless it was told otherwise.
                type: int
              selectPolicy:
                description:
                  - Which policy holds, the one that allows the largest change, the smallest one, or none, so that the direction is off.
                    By default V(Max).
                type: str
                choices: [Max, Min, Disabled]
              policies:
                description:
                  - What is allowed at a time. By default 100 percent per 15 s.
                type: list
                elements: dict
                suboptions:
                  type:
                    description:
                      - Whether the value is a number of pods or a percentage of those there are.
                    type: str
                    required: true
                    choices: [Pods, Percent]
                  value:
                    description:
                      - How many, above 0.
                    type: int
                    required: true
                  periodSeconds:
                    description:
                      - Seconds in which no more may change, from 1 to 1800.
                    type: int
                    required: true
              tolerance:
                description:
                  - Quantity of 0 or more, the share by which a metric may be below its target before anything changes, such as V(0.05). By
                    default that of the controller, which is 0.1 unless it was told otherwise.
                  - The API server must be Kubernetes 1.33 or later with the feature gate C(HPAConfigurableTolerance) on.
                type: str
seealso:
  - module: headroom.scale.hpa_info
  - module: kubernetes.core.k8s
"""

EXAMPLES = r"""
- name: Scale a trading application on cpu, memory and the requests that its ingress takes
  headroom.scale.hpa:
    name: trading-app
    namespace: trading-system
    spec:
      scaleTargetRef:
        name: trading-app
      minReplicas: 3
      maxReplicas: 50
      metrics:
        - type: Resource
          resource:
            name: cpu
            target:
              type: Utilization
              averageUtilization: 70
        - type: Resource
          resource:
            name: memory
            target:
              type: Utilization
              averageUtilization: 80
        - type: Object
          object:
            metric:
              name: requests-per-second
            describedObject:
              apiVersion: networking.k8s.io/v1
              kind: Ingress
              name: trading-ingress
            target:
              type: Value
              value: "1000"
      behavior:
        scaleUp:
          stabilizationWindowSeconds: 60
          policies:
            - type: Percent
              value: 50
              periodSeconds: 60
            - type: Pods
              value: 5
              periodSeconds: 60
        scaleDown:
          stabilizationWindowSeconds: 300
          policies:
            - type: Percent
              value: 10
              periodSeconds: 60

- name: Scale consumers on the length of their queue, and on the cpu of one container
  headroom.scale.hpa:
    host: https://k8s.example.com:6443
    token: "{{ autoscaling_token }}"
    ca_cert: /etc/ssl/certs/internal-ca.pem
    name: product-change-service
    namespace: phonebill
    spec:
      scaleTargetRef:
        name: product-change-service
      minReplicas: 2
      maxReplicas: 8
      metrics:
        - type: External
          external:
            metric:
              name: queue_length
              selector:
                matchLabels:
                  queue: product-change
            target:
              type: AverageValue
              averageValue: "5"
        - type: ContainerResource
          containerResource:
            name: cpu
            container: app
            target:
              type: Utilization
              averageUtilization: 70

- name: Scale on what each pod says of itself
  headroom.scale.hpa:
    name: bill-inquiry-service
    namespace: phonebill
    spec:
      scaleTargetRef:
        name: bill-inquiry-service
      minReplicas: 3
      maxReplicas: 15
      metrics:
        - type: Pods
          pods:
            metric:
              name: active_connections
            target:
              type: AverageValue
              averageValue: "30"
      behavior:
        scaleDown:
          selectPolicy: Disabled

- name: Leave the replicas to someone else
  headroom.scale.hpa:
    name: bill-inquiry-service
    namespace: phonebill
    state: absent
"""

RETURN = r"""
action:
  description: What was done, or would be in check mode, one of V(create), V(patch), V(delete) and V(none).
  returned: success
  type: str
  sample: patch
name:
  description: Name of the autoscaler.
  returned: success
  type: str
  sample: trading-app
namespace:
  description: Its namespace.
  returned: success
  type: str
  sample: trading-system
summary:
  description: The same in one sentence.
  returned: success
  type: str
  sample: "Changed HPA trading-system/trading-app: max replicas, metric cpu."
spec:
  description:
    - The spec as it is now, or would be, with all defaults, and quantities as the API server spells them. None when there is none.
    - It can be given as O(spec) again.
  returned: success
  type: dict
  sample:
    maxReplicas: 50
    metrics:
      - resource:
          name: cpu
          target:
            averageUtilization: 70
            type: Utilization
        type: Resource
    minReplicas: 3
    scaleTargetRef:
      apiVersion: apps/v1
      kind: Deployment
      name: trading-app
plan:
  description:
    - What changes, one entry for each limit, metric and policy, none for what was not or will not be there.
    - When the API server did not keep what it was sent, what is missing of it.
  returned: success, or not kept
  type: list
  elements: dict
  sample:
    - after: "50"
      before: "40"
      what: max replicas
    - after: 70 % of the request
      before: 60 % of the request
      what: metric cpu
findings:
  description:
    - What would keep the autoscaler from working well, each with a stable code, a sentence, and names and figures.
    - >-
      The codes are V(shared_target) and V(shared_pods) (another autoscaler has the same target, or selects its pods),
      V(replicas_owned) (a manifest still sets the replicas of the target), V(drain_blocked) (a PodDisruptionBudget lets no pod go
      when there are O(spec.minReplicas)), V(requests_missing) and V(container_missing) (a utilisation cannot be computed), and
      V(target_missing).
  returned: success
  type: list
  elements: dict
  sample:
    - budget: trading-app
      code: drain_blocked
      message: >-
        PodDisruptionBudget trading-app (minAvailable 3) lets no pod be evicted at the floor of 3, so that a node cannot be drained;
        raise minReplicas or loosen the budget.
      min_replicas: 3
not_read:
  description: What was not looked at, with the reason. No finding is to be expected of it.
  returned: success
  type: dict
  sample:
    disruption budgets: >-
      Failed to list the PodDisruptionBudgets on https://k8s.example.com:6443: poddisruptionbudgets.policy is forbidden. Give the
      account this right by a Role and a RoleBinding.
attempts:
  description: How often it was tried, more than once when others changed it at the same time.
  returned: success
  type: int
  sample: 1
errors:
  description:
    - Why it failed, with C(code) and C(message).
    - >-
      The codes are V(bad_option), V(no_access), V(no_credentials), V(connection_failed), V(no_response), V(timeout), V(proxy),
      V(tls_refused), V(bad_answer), V(redirected), V(unauthorized), V(forbidden), V(not_found), V(api_missing), V(conflict),
      V(bad_request), V(invalid), V(overloaded), V(server_error), V(being_deleted), V(not_kept) and V(missing_library).
  returned: failure
  type: list
  elements: dict
  sample:
    - code: forbidden
      message: >-
        Failed to patch HPA trading-system/trading-app on https://k8s.example.com:6443: horizontalpodautoscalers.autoscaling
        "trading-app" is forbidden. Give the account this right by a Role and a RoleBinding.
      status: 403
"""

import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.converge import (  # noqa: E402
    converge,
    hpa_spec,
    parse_options,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def work(module: AnsibleModule) -> dict[str, t.Any]:
    """Do the run, and make its findings warnings."""
    result = converge(parse_options(module.params), module.check_mode)
    for finding in result["findings"]:
        module.warn(finding["message"])
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **hpa_spec().to_kwargs())
    run(module, work)


if __name__ == "__main__":
    main()
