# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Changes an HPA to what was tuned, and back. The spec that a change replaced is kept in an annotation, written with the change."""

from __future__ import annotations

import datetime
import json
import random
import time
import typing as t
from dataclasses import dataclass

from ..._common.errors import HeadroomError, OptionError
from ..kube.client import Client, Refused
from ..kube.connection import Access
from ..kube.model import comparable, complete
from ..kube.observe import hpas_path
from ..kube.plan import NOTHING, Plan, plan
from ..spec import parse_spec

ANNOTATION = "headroom.scale/tuned"
"""Where the changes are recorded, newest last, each with the time, the spec that it replaced and the one that it applied."""
RECORDS = 10
ATTEMPTS = 5


@dataclass(frozen=True)
class Present:
    """An HPA as it was read: its spec with all defaults, what was recorded, and whether its metrics are read."""

    spec: dict[str, t.Any]
    records: tuple[dict[str, t.Any], ...]
    active: bool
    version: tuple[int, int] | None = None


class Tuned:
    """One HPA on one API server."""

    def __init__(self, access: Access, namespace: str, name: str) -> None:
        """Name the HPA; nothing is sent yet."""
        self._access = access
        self.title = f"HPA {namespace}/{name}"
        self._path = f"{hpas_path(namespace)}/{name}"

    def read(self, changing: bool) -> Present:
        """Read the HPA and the version of the server.

        :param changing: whether it is to be changed afterwards.
        :raises HeadroomError: when it cannot be read, is not there, or is to be changed and is being deleted.
        """
        with Client(self._access) as client:
            found = self._read(client, changing)
            said = client.get("/version", "read the version")
        digits = ["".join(one for one in str(said.get(part, "")) if one.isdigit()) for part in ("major", "minor")]
        version = (int(digits[0]), int(digits[1])) if all(digits) else None
        return self._present(found, client, version)

    def apply(self, tuned: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any], summary: str) -> int:
        """Change the HPA from the spec that was tuned to another one, and record that; return the number of attempts.

        :raises HeadroomError: when it has another spec by now, or the server refuses or does not keep it.
        """

        def change(present: Present) -> tuple[Plan, list[dict[str, t.Any]]]:
            if comparable(present.spec) != comparable(tuned):
                self._changed("apply", "it was changed by others since it was read; run again")
            entry = {"at": _now(), "replaced": present.spec, "applied": complete(after), "summary": summary}
            return plan({"spec": present.spec}, after), [*present.records, entry][-RECORDS:]

        return self._write("tune", change)

    def revert(self, present: Present, keep_floor: bool) -> tuple[dict[str, t.Any], Plan]:
        """Return the newest record that is not undone, and what undoes it.

        :param keep_floor: whether ``minReplicas`` must not be lowered, as it never is where a schedule has raised it since.
        :raises HeadroomError: when the HPA was changed since.
        """
        entry = present.records[-1]
        now, applied = comparable(present.spec), comparable(entry["applied"])
        # a schedule of floors moves minReplicas alone
        if {**now, "minReplicas": 0} != {**applied, "minReplicas": 0}:
            self._changed(
                "revert", "its spec is no longer the one that was applied; declare the spec with the module hpa"
            )
        back = complete(entry["replaced"])
        if keep_floor or now["minReplicas"] > applied["minReplicas"]:
            back["minReplicas"] = max(now["minReplicas"], back["minReplicas"])
            back["maxReplicas"] = max(back["maxReplicas"], back["minReplicas"])
        return entry, plan({"spec": present.spec}, back)

    def write_back(self, keep_floor: bool) -> int:
        """Undo the newest recorded change, and return the number of attempts.

        :param keep_floor: as for :meth:`revert`.
        :raises HeadroomError: when it was changed since, or the server refuses or does not keep it.
        """

        def change(present: Present) -> tuple[Plan, list[dict[str, t.Any]]]:
            return self.revert(present, keep_floor)[1], list(present.records[:-1])

        return self._write("revert", change)

    def _write(self, verb: str, change: t.Callable[[Present], tuple[Plan, list[dict[str, t.Any]]]]) -> int:
        """Send one request with the change and its record; when others wrote between, look again."""
        with Client(self._access) as client:
            for attempt in range(1, ATTEMPTS + 1):
                found = self._read(client, changing=True)
                planned, records = change(self._present(found, client))
                value = json.dumps(records, sort_keys=True, separators=(",", ":")) if records else None
                body = {
                    "metadata": {
                        "resourceVersion": found["metadata"]["resourceVersion"],
                        "annotations": {ANNOTATION: value},
                    },
                    "spec": dict(planned.body or {}),
                }
                try:
                    seen = client.patch(self._path, body, f"{verb} {self.title}")
                except Refused as error:
                    if error.code != "conflict" or attempt == ATTEMPTS:
                        raise
                    # others that met the same conflict come back at another time
                    time.sleep(max(0.0, min(0.05 * 2**attempt * random.uniform(0.5, 1.0), client.left_s())))
                    continue
                missing = plan(seen, planned.after)
                if missing.action != NOTHING:
                    names = ", ".join(one.what for one in missing.changes[:3])
                    raise HeadroomError(
                        f"Failed to verify {self.title} on {client.url}: the server stored something else ({names}). Look for an admission "
                        "webhook, or a feature gate that is off.",
                        code="not_kept",
                        result={"changed": True},
                    )
                return attempt
        raise AssertionError("unreachable")

    def _read(self, client: Client, changing: bool) -> dict[str, t.Any]:
        found = client.find(self._path, f"read {self.title}")
        if found is None:
            raise HeadroomError(
                f"Failed to read {self.title} on {client.url}: there is none of that name. Declare it with the module hpa first.",
                code="not_found",
            )
        if changing and found["metadata"].get("deletionTimestamp"):
            raise HeadroomError(
                f"Failed to change {self.title} on {client.url}: it is being deleted and waits for its finalizers. Run again when it is "
                "there anew.",
                code="being_deleted",
            )
        return found

    def _present(self, found: t.Mapping[str, t.Any], client: Client, version: tuple[int, int] | None = None) -> Present:
        conditions = (found.get("status") or {}).get("conditions") or ()
        # a target that was scaled to zero by hand has no metrics that could be read
        inactive = any(
            one.get("type") == "ScalingActive"
            and one.get("status") != "True"
            and one.get("reason") != "ScalingDisabled"
            for one in conditions
        )
        text = (found["metadata"].get("annotations") or {}).get(ANNOTATION)
        try:
            records = [] if text is None else json.loads(text)
            whole = isinstance(records, list) and all(map(_is_record, records))
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise HeadroomError(
                f"Failed to read {self.title} on {client.url}: its annotation {ANNOTATION} is not what this module wrote. Remove it.",
                code="bad_record",
            )
        return Present(complete(found["spec"]), tuple(records), not inactive, version)

    def _changed(self, verb: str, why: str) -> t.NoReturn:
        raise HeadroomError(f"Failed to {verb} {self.title} on {self._access.url}: {why}.", code="changed_since")


def _is_record(given: t.Any) -> bool:
    """Return whether something is a record of a change: both specs are ones that the API has."""
    if not isinstance(given, dict):
        return False
    try:
        for name in ("replaced", "applied"):
            parse_spec(given.get(name), name)
    except OptionError:
        return False
    return isinstance(given["replaced"].get("scaleTargetRef"), dict)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
