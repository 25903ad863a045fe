# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``cloudfront_distribution``: observe, plan, apply, verify; a conflict starts it over, a bounded number of times."""

from __future__ import annotations

import random
import re
import time
import typing as t
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.aws.cloudfront import Client, Refused
from ..._common.aws.connection import Access, connection_spec, parse_access
from ..._common.errors import HeadroomError, OptionError
from ..options import cdn_spec, check_name, parse_cdn
from . import plan as planning
from .apply import Applier
from .model import DISTRIBUTION, STAGING, Observed
from .observe import observe
from .plan import DIRECT, ROLLED_BACK, ROLLOUTS, STAGED, Declared, Plan, plan
from .render import render

ATTEMPTS = 5
# before another attempt, growing with each
BACKOFF_S = 0.5
_ID = re.compile(r"[A-Z0-9]{5,32}")
_HEADER = re.compile(r"aws-cf-cd-[A-Za-z0-9-]{1,240}")
_TAG_HEADER = re.compile(r"[A-Za-z0-9-]{1,128}")
_WEB_ACL = re.compile(r"arn:aws[a-z-]*:wafv2:us-east-1:\d{12}:global/webacl/[A-Za-z0-9_-]+/[A-Za-z0-9-]+")


def distribution_spec() -> ArgumentSpec:
    """Return the module's options."""
    traffic = {
        "weight_percent": {"type": "float"},
        "stickiness_idle_s": {"type": "int"},
        "stickiness_max_s": {"type": "int"},
        "header": {"type": "str"},
        "header_value": {"type": "str"},
    }
    return connection_spec().merge(
        cdn_spec(),
        ArgumentSpec(
            {
                "distribution_id": {"type": "str"},
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                "rollout": {"type": "str", "choices": list(ROLLOUTS), "default": DIRECT},
                "staging": {"type": "dict", "options": traffic},
                "web_acl": {"type": "str"},
                "cache_tag_header": {"type": "str"},
                "tags": {"type": "dict"},
                "wait": {"type": "bool", "default": True},
                "wait_timeout_s": {"type": "float", "default": 1800.0},
            },
            required_if=[("state", "present", ("origins", "default_behavior")), ("rollout", STAGED, ("staging",))],
        ),
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked."""

    declared: Declared
    distribution_id: str | None
    wait: bool
    wait_timeout_s: float
    function_bytes: int
    access: Access = field(repr=False)


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises HeadroomError: naming the option, its value and what to give instead.
    """
    name, rollout, size = params["name"], params["rollout"], 0
    check_name(name)
    if params["distribution_id"] is not None and not _ID.fullmatch(params["distribution_id"]):
        raise OptionError("distribution_id", params["distribution_id"], "give an id, such as 'E2QWRUHAPOMZQL'.")
    if not 0 <= params["wait_timeout_s"] <= 86400:
        raise OptionError("wait_timeout_s", params["wait_timeout_s"], "give a number of seconds from 0 to 86400.")
    rendered, traffic = None, None
    if params["state"] == "present":
        if params["web_acl"] and not _WEB_ACL.fullmatch(params["web_acl"]):
            raise OptionError(
                "web_acl", params["web_acl"], "give the ARN of a global web ACL, or an empty text for none."
            )
        header = params["cache_tag_header"]
        if header and not _TAG_HEADER.fullmatch(header):
            raise OptionError("cache_tag_header", header, "give the name of a header, or an empty text for none.")
        cdn = parse_cdn(params)
        rendered = render(cdn, params["web_acl"], header)
        size = max((len(str(piece.config.get("Code", "")).encode()) for piece in rendered.pieces.values()), default=0)
        if rollout == STAGED:
            if "3" in cdn.http_version:
                raise OptionError(
                    "http_version", cdn.http_version, "give 'http2': CloudFront stages nothing of what speaks HTTP/3."
                )
            traffic = _traffic(params["staging"])
    tags = None if params["tags"] is None else _tags(params["tags"])
    return Options(
        declared=Declared(name, rendered, tags, rollout, traffic),
        distribution_id=params["distribution_id"],
        wait=params["wait"],
        wait_timeout_s=params["wait_timeout_s"],
        function_bytes=size,
        access=parse_access(params),
    )


def _traffic(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return who gets to the staging distribution, as the API has it."""
    weight, header, value = given["weight_percent"], given["header"], given["header_value"]
    idle_s, max_s = given["stickiness_idle_s"], given["stickiness_max_s"]
    if (weight is None) == (header is None):
        raise OptionError(
            "staging", {"weight_percent": weight, "header": header}, "give one of weight_percent and header."
        )
    if header is not None:
        if not _HEADER.fullmatch(header):
            raise OptionError("staging.header", header, "give a name that starts with 'aws-cf-cd-'.")
        if not value or not value.isascii() or not value.isprintable() or len(value) > 1783:
            raise OptionError("staging.header_value", value, "give at most 1783 printable ASCII characters.")
        if idle_s is not None or max_s is not None:
            raise OptionError(
                "staging.header",
                header,
                "leave out stickiness_idle_s and stickiness_max_s, which belong to weight_percent.",
            )
        return {"Type": "SingleHeader", "SingleHeaderConfig": {"Header": header, "Value": value}}
    if value is not None:
        raise OptionError("staging.header_value", value, "give header too, or leave it out.")
    if not 0 < weight <= 15:
        raise OptionError("staging.weight_percent", weight, "give a number above 0 and up to 15.")
    single: dict[str, t.Any] = {"Weight": round(weight / 100, 6)}
    if idle_s is not None or max_s is not None:
        for option, seconds in (("stickiness_idle_s", idle_s), ("stickiness_max_s", max_s)):
            if seconds is None or not 300 <= seconds <= 3600:
                raise OptionError(
                    f"staging.{option}", seconds, "give a whole number from 300 to 3600, for both of them."
                )
        if idle_s > max_s:
            raise OptionError("staging.stickiness_idle_s", idle_s, f"give at most stickiness_max_s, which is {max_s}.")
        single["SessionStickinessConfig"] = {"IdleTTL": idle_s, "MaximumTTL": max_s}
    return {"Type": "SingleWeight", "SingleWeightConfig": single}


def _tags(given: t.Mapping[str, t.Any]) -> dict[str, str]:
    for key, value in given.items():
        if (
            not isinstance(value, str)
            or not 1 <= len(str(key)) <= 128
            or len(value) > 256
            or str(key).lower().startswith("aws:")
        ):
            raise OptionError(
                f"tags.{key}",
                value,
                "give text of at most 256 characters in quotes, under a key that does not start with 'aws:'.",
            )
    return {str(key): value for key, value in given.items()}


def converge(options: Options, check: bool) -> dict[str, t.Any]:
    """Bring CloudFront to what is declared and return the result.

    :param check: whether to stop before the first write.
    :raises HeadroomError: when CloudFront cannot be reached or refuses, or does not keep what it was sent.
    """
    return _Run(Client(options.access), options).converge(check)


class _Run:
    """One run over one distribution."""

    def __init__(self, client: Client, options: Options) -> None:
        self.client = client
        self.options = options
        self.title = f"CloudFront distribution {options.declared.name}"

    def converge(self, check: bool) -> dict[str, t.Any]:
        """Observe, plan, apply and verify."""
        first: Plan | None = None
        written = False
        for attempt in range(1, ATTEMPTS + 1):
            observed = self._observe()
            planned = plan(observed, self.options.declared)
            first = first or planned
            if check or not planned.steps:
                return self._result(first, observed, check, attempt)
            applier = Applier(self.client, observed, self.options.wait_timeout_s, self.options.wait)
            try:
                for step in planned.steps:
                    applier.do(step)
            except HeadroomError as error:
                written = written or applier.done > 0
                if not isinstance(error, Refused) or not error.conflict:
                    error.result = {"changed": written, **error.result}
                    raise
                if attempt == ATTEMPTS:
                    raise self._beaten(written) from error
                # others that met the same conflict come back at another time
                time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
                continue
            return self._verified(first, applier, attempt)
        raise AssertionError("unreachable")

    def _observe(self) -> Observed:
        return observe(self.client, self.options.declared.name, self.options.distribution_id)

    def _beaten(self, written: bool) -> HeadroomError:
        return HeadroomError(
            f"Failed to change {self.title} at {self.client.url}: it was changed by others during each of {ATTEMPTS} attempts. "
            "Find out what else manages it, and run again.",
            code="conflict",
            result={"changed": written},
        )

    def _verified(self, planned: Plan, applier: Applier, attempts: int) -> dict[str, t.Any]:
        """Look again, and wait until the edges have it where that is asked for."""
        observed = self._observe()
        missing = [step for step in plan(observed, self.options.declared).steps if step.name not in applier.left_behind]
        if missing:
            names = ", ".join(f"{step.action} {step.kind} {step.name}" for step in missing[:3])
            raise HeadroomError(
                f"Failed to verify {self.title} at {self.client.url}: CloudFront holds something else than it was sent (still to do: "
                f"{names}). Look for something else that manages it.",
                code="not_kept",
                result={"changed": True, "plan": [step.as_dict() for step in planned.steps]},
            )
        return self._result(planned, observed, False, attempts, applier)

    def _result(
        self, planned: Plan, observed: Observed, check: bool, attempts: int, applier: Applier | None = None
    ) -> dict[str, t.Any]:
        left = applier.left_behind if applier else []
        changed = len(planned.steps) > len(left)
        if self.options.wait and not check and self.options.declared.rollout != ROLLED_BACK:
            try:
                observed = self._wait(observed)
            except HeadroomError as error:
                error.result = {"changed": changed, **error.result}
                raise
        return {
            "changed": changed,
            "name": self.options.declared.name,
            "summary": self._summary(planned, changed, check),
            "plan": [step.as_dict() for step in planned.steps],
            "changes": [change.as_dict() for change in planned.changes],
            "distribution": _shown(observed.primary),
            "staging_distribution": _shown(observed.staging),
            "staging_enabled": observed.deployment is not None and observed.deployment.enabled,
            "function_bytes": self.options.function_bytes,
            "left_behind": sorted(left),
            "attempts": attempts,
            "diff": {
                "before": planning.text(planned.before),
                "after": planning.text(planned.after, planned.changes),
                "before_header": self.title,
                "after_header": self.title,
            },
        }

    def _wait(self, observed: Observed) -> Observed:
        waiting = [
            kind
            for kind, one in ((DISTRIBUTION, observed.primary), (STAGING, observed.staging))
            if one is not None and not one.deployed
        ]
        for kind in waiting:
            Applier(self.client, observed, self.options.wait_timeout_s).wait(kind)
        return self._observe() if waiting else observed

    def _summary(self, planned: Plan, changed: bool, check: bool) -> str:
        if not changed:
            if self.options.declared.rendered is None:
                return f"There is nothing to delete of {self.title}."
            if self.options.declared.rollout == ROLLED_BACK:
                return f"All viewers of {self.title} get what it holds; nothing is staged."
            return f"{self.title} is as declared."
        verb = "Would do" if check else "Did"
        said = ", ".join(dict.fromkeys(f"{step.action} {step.kind.replace('_', ' ')}" for step in planned.steps))
        return f"{verb} for {self.title}: {said}."


def _shown(one: t.Any) -> dict[str, t.Any] | None:
    """Return what callers need of a distribution."""
    if one is None:
        return None
    return {
        "id": one.id,
        "arn": one.arn,
        "domain_name": one.domain_name,
        "status": one.status,
        "enabled": bool(one.config.get("Enabled")),
        "aliases": sorted((one.config.get("Aliases") or {}).get("Items") or []),
    }
