# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The steps of a plan, done one after another. Each write says which version it changes."""

from __future__ import annotations

import time
import typing as t

from ..._common.aws.cloudfront import Client, Refused
from ..._common.errors import HeadroomError
from .model import DEPLOYMENT, DISTRIBUTION, FUNCTION, STAGING, Observed, replaced
from .observe import APIS, read_distribution
from .plan import POLICY, STAGING_DOMAIN, Step

POLL_S = 15.0


class Applier:
    """Does steps; ``left_behind`` are the pieces that something else still uses."""

    def __init__(self, client: Client, observed: Observed, wait_timeout_s: float, may_wait: bool = True) -> None:
        """Start from what was observed."""
        self.client = client
        self.wait_timeout_s = wait_timeout_s
        self.may_wait = may_wait
        self.left_behind: list[str] = []
        self.done = 0
        self._pieces = {key: piece.id for key, piece in observed.pieces.items()}
        # references, and what they stand for
        self._ids = {piece.ref: piece.id for piece in observed.pieces.values()}
        there = {
            kind: one
            for kind, one in ((DISTRIBUTION, observed.primary), (STAGING, observed.staging))
            if one is not None
        }
        self._distributions = {kind: one.id for kind, one in there.items()}
        self._etags = {kind: one.etag for kind, one in there.items()}
        self._arn = observed.primary.arn if observed.primary else ""
        self._deployment = observed.deployment.id if observed.deployment else ""
        self._deployment_etag = observed.deployment.etag if observed.deployment else ""
        self._staging_reference = ""
        if observed.staging is not None:
            self._ids[STAGING_DOMAIN] = observed.staging.domain_name
            self._staging_reference = observed.staging.config["CallerReference"]

    def do(self, step: Step) -> None:
        """Do one step.

        :raises HeadroomError: when it cannot be done.
        """
        if step.kind == DEPLOYMENT:
            self._do_deployment(step)
        elif step.kind in (DISTRIBUTION, STAGING):
            self._do_distribution(step)
        elif step.kind == FUNCTION:
            self._do_function(step)
        else:
            self._do_piece(step)
        self.done += 1

    # ---- distributions

    def _do_distribution(self, step: Step) -> None:
        purpose = f"{step.action} {step.kind.replace('_', ' ')} {step.name}"
        if step.action == "create":
            config, tags = step.payload
            body = {"DistributionConfig": replaced(config, self._ids), "Tags": {"Items": _tags(tags)}}
            answer = self.client.call("create_distribution_with_tags", purpose, DistributionConfigWithTags=body)
            self._keep(DISTRIBUTION, answer)
        elif step.action == "copy":
            answer = self.client.call(
                "copy_distribution",
                purpose,
                PrimaryDistributionId=self._distributions[DISTRIBUTION],
                IfMatch=self._etags[DISTRIBUTION],
                Staging=True,
                CallerReference=step.payload,
                Enabled=True,
            )
            self._keep(STAGING, answer)
        elif step.action in ("update", "disable"):
            config = replaced(step.payload, self._ids)
            if step.kind == STAGING:
                # a copy has a caller reference of its own
                config["CallerReference"] = self._staging_reference
            answer = self.client.call(
                "update_distribution",
                purpose,
                Id=self._distributions[step.kind],
                IfMatch=self._etags[step.kind],
                DistributionConfig=config,
            )
            self._keep(step.kind, answer)
        elif step.action == "tag":
            new, gone = step.payload
            if gone:
                self.client.call("untag_resource", purpose, Resource=self._arn, TagKeys={"Items": gone})
            if new:
                self.client.call("tag_resource", purpose, Resource=self._arn, Tags={"Items": _tags(new)})
        elif step.action == "promote":
            # CloudFront promotes what all edges have
            self.wait(STAGING)
            answer = self.client.call(
                "update_distribution_with_staging_config",
                purpose,
                Id=self._distributions[DISTRIBUTION],
                StagingDistributionId=self._distributions[STAGING],
                IfMatch=f"{self._etags[DISTRIBUTION]}, {self._etags[STAGING]}",
            )
            self._keep(DISTRIBUTION, answer)
        else:
            self.wait(step.kind)
            gone = self._distributions.pop(step.kind)
            self.client.call("delete_distribution", purpose, Id=gone, IfMatch=self._etags[step.kind])

    def _keep(self, kind: str, answer: t.Mapping[str, t.Any]) -> None:
        """Keep what an answer says of a distribution, for the steps after it."""
        item = answer["Distribution"]
        self._distributions[kind], self._etags[kind] = item["Id"], answer["ETag"]
        if kind == STAGING:
            self._ids[STAGING_DOMAIN] = item["DomainName"]
            self._staging_reference = item["DistributionConfig"]["CallerReference"]
        else:
            self._arn = item["ARN"]

    def wait(self, kind: str) -> None:
        """Wait until all edges have what a distribution holds.

        :raises HeadroomError: when they don't in time.
        """
        deadline = time.monotonic() + self.wait_timeout_s
        while True:
            found = read_distribution(self.client, self._distributions[kind], {})
            if found.deployed:
                self._etags[kind] = found.etag
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise HeadroomError(
                    f"Failed to wait for {kind.replace('_', ' ')} {found.id} at {self.client.url}: after {self.wait_timeout_s:g} s it is "
                    f"{found.status}. Run again later, or raise wait_timeout_s.",
                    code="not_deployed",
                )
            time.sleep(min(POLL_S, left_s))

    # ---- continuous deployment

    def _do_deployment(self, step: Step) -> None:
        purpose = f"{step.action} the continuous deployment policy of {step.name}"
        config = replaced(step.payload, self._ids)
        if step.action == "create":
            answer = self.client.call(
                "create_continuous_deployment_policy", purpose, ContinuousDeploymentPolicyConfig=config
            )
            self._ids[POLICY] = answer["ContinuousDeploymentPolicy"]["Id"]
        elif step.action == "update":
            self.client.call(
                "update_continuous_deployment_policy",
                purpose,
                Id=self._deployment,
                IfMatch=self._deployment_etag,
                ContinuousDeploymentPolicyConfig=config,
            )
        else:
            self.client.call(
                "delete_continuous_deployment_policy", purpose, Id=self._deployment, IfMatch=self._deployment_etag
            )

    # ---- pieces

    def _do_piece(self, step: Step) -> None:
        api, purpose = APIS[step.kind], f"{step.action} {step.kind.replace('_', ' ')} {step.name}"
        if step.action == "create":
            config = {"Name": step.name, **step.payload}
            answer = self.client.call(f"create_{api.one}", purpose, **{api.config: config})
            self._ids[f"ref:{step.kind}:{step.name}"] = answer[api.answer]["Id"]
            return
        found = self._pieces[step.kind, step.name]
        etag = self.client.call(f"get_{api.one}", purpose, Id=found)["ETag"]
        if step.action == "update":
            self.client.call(
                f"update_{api.one}",
                purpose,
                Id=found,
                IfMatch=etag,
                **{api.config: {"Name": step.name, **step.payload}},
            )
        else:
            self._delete(step, lambda: self.client.call(f"delete_{api.one}", purpose, Id=found, IfMatch=etag))

    def _do_function(self, step: Step) -> None:
        purpose = f"{step.action} function {step.name}"
        if step.action == "delete":
            etag = self.client.call("describe_function", purpose, Name=step.name)["ETag"]
            self._delete(step, lambda: self.client.call("delete_function", purpose, Name=step.name, IfMatch=etag))
            return
        body = {
            "Name": step.name,
            "FunctionConfig": {"Comment": "edge rules", "Runtime": step.payload["Runtime"]},
            "FunctionCode": step.payload["Code"].encode(),
        }
        if step.action == "create":
            answer = self.client.call("create_function", purpose, **body)
        else:
            etag = self.client.call("describe_function", purpose, Name=step.name)["ETag"]
            answer = self.client.call("update_function", purpose, IfMatch=etag, **body)
        self._ids[f"ref:{FUNCTION}:{step.name}"] = answer["FunctionSummary"]["FunctionMetadata"]["FunctionARN"]
        # associations run what is live, not what is in development
        self.client.call("publish_function", f"publish function {step.name}", Name=step.name, IfMatch=answer["ETag"])

    def _delete(self, step: Step, delete: t.Callable[[], t.Any]) -> None:
        """Delete a piece; one that is still in use when all edges have the distribution as it is now stays for a later run."""
        for last in (not self.may_wait, True):
            try:
                delete()
                return
            except Refused as error:
                if not error.in_use:
                    raise
            if last or DISTRIBUTION not in self._distributions:
                break
            self.wait(DISTRIBUTION)
        self.left_behind.append(step.name)


def _tags(tags: t.Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
