# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The layer of a CDN on CloudFront: invalidations within its limits, each waited for."""

from __future__ import annotations

import time
import typing as t
import uuid

from .._common.aws.cloudfront import Client, Refused
from .._common.aws.connection import Access
from .._common.errors import HeadroomError
from .model import CLOUDFRONT, Counts, Targets, number
from .plan import batches, coalesce, cost

POLL_S = 5.0
# characters of a tag
MOST_TAG = 256


class CloudfrontLayer:
    """One distribution."""

    name = CLOUDFRONT
    kind = CLOUDFRONT

    def __init__(
        self,
        distribution_id: str,
        access: Access,
        targets: Targets,
        max_paths: int | None,
        wait_timeout_s: float,
        by_tags: bool = False,
    ) -> None:
        """Take the distribution and what is flushed there; ``by_tags`` where it keeps the tags of its objects."""
        self.distribution_id = distribution_id
        self.access = access
        self.wait_timeout_s = wait_timeout_s
        self.paths = ["/*"] if targets.everything else coalesce(targets.paths, max_paths)
        if by_tags and not targets.everything:
            # to CloudFront a tag is the same in capitals, and each costs what a path does
            self.paths += [f"#{tag}" for tag in sorted({tag.lower() for tag in targets.tags})]
        # what has been asked for and was not seen done: an attempt after a failure waits for it instead of paying twice
        self._open: list[tuple[str, list[str]]] = []
        self._done: list[tuple[str, list[str]]] = []

    @property
    def idle(self) -> bool:
        """Whether nothing of what is flushed concerns this layer."""
        return not self.paths

    def describe(self) -> str:
        """Return in a line what is flushed there."""
        tags = sum(path.startswith("#") for path in self.paths)
        more = f" and {number(tags, 'tags')}" if tags else ""
        return f"{number(len(self.paths) - tags, 'paths')}{more} of distribution {self.distribution_id}"

    def prepare(self) -> None:
        """Require the driver and a login that can be tried."""
        self._client = Client(self.access)

    def count(self) -> Counts:
        """Return what would be asked, after a look whether the distribution is there."""
        self._client.call("get_distribution", f"read distribution {self.distribution_id}", Id=self.distribution_id)
        return self._counts([])

    def flush(self, last: bool) -> Counts:
        """Invalidate, one batch after another, and wait for each."""
        client = self._client
        # what an attempt before this one has sent is not paid for twice
        sent = [paths for _id, paths in [*self._done, *self._open]]
        groups = [group for group in batches(self.paths) if group not in sent]
        deadline = time.monotonic() + self.wait_timeout_s
        try:
            while self._open or groups:
                if not self._open:
                    self._open.append((self._create(client, groups[0], deadline), groups[0]))
                    groups.pop(0)
                self._wait(client, self._open[0][0], deadline)
                self._done.append(self._open.pop(0))
        except HeadroomError as error:
            error.facts["sent"] = sum(len(paths) for _id, paths in [*self._done, *self._open])
            raise
        made = [identifier for identifier, _paths in self._done]
        self._done = []
        return self._counts(made)

    def _create(self, client: Client, paths: t.Sequence[str], deadline: float) -> str:
        purpose = f"invalidate {len(paths)} paths of distribution {self.distribution_id}"
        # one reference for all attempts: CloudFront takes the same one again for the same request
        batch = {"Paths": {"Quantity": len(paths), "Items": list(paths)}, "CallerReference": uuid.uuid4().hex}
        while True:
            try:
                answer = client.call(
                    "create_invalidation", purpose, DistributionId=self.distribution_id, InvalidationBatch=batch
                )
                return str(answer["Invalidation"]["Id"])
            except Refused as error:
                # others use the limits too
                if error.aws_code != "TooManyInvalidationsInProgress" or time.monotonic() >= deadline:
                    raise
            time.sleep(max(0.0, min(POLL_S, deadline - time.monotonic())))

    def _wait(self, client: Client, identifier: str, deadline: float) -> None:
        purpose = f"read invalidation {identifier} of distribution {self.distribution_id}"
        while True:
            answer = client.call("get_invalidation", purpose, DistributionId=self.distribution_id, Id=identifier)
            if answer["Invalidation"]["Status"] == "Completed":
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise HeadroomError(
                    f"Failed to wait for invalidation {identifier} of distribution {self.distribution_id} at {client.url}: after "
                    f"{self.wait_timeout_s:g} s it is {answer['Invalidation']['Status']}. Raise cloudfront.wait_timeout_s.",
                    code="not_completed",
                )
            time.sleep(min(POLL_S, left_s))

    def _counts(self, made: list[str]) -> Counts:
        more = {"paths": self.paths, "invalidations": made, "cost": cost(len(self.paths))}
        return Counts(0, len(self.paths), False, more)
