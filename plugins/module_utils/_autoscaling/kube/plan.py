# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What has to be sent for a HorizontalPodAutoscaler to be as declared. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.change import Change
from .model import Spec, comparable, complete, describe

CREATE = "create"
PATCH = "patch"
DELETE = "delete"
NOTHING = "none"


@dataclass(frozen=True)
class Plan:
    """One action, what to send with it, what changes in words, and the specs before and after, as the server has them."""

    action: str
    body: t.Mapping[str, t.Any] | None = None
    changes: tuple[Change, ...] = ()
    before: Spec | None = None
    after: Spec | None = field(default=None)


def plan(present: t.Mapping[str, t.Any] | None, declared: t.Mapping[str, t.Any] | None) -> Plan:
    """Compare the object that is present with the declared spec; ``None`` stands for none.

    The body is a spec to create, or the changed fields of a spec as a JSON merge patch (RFC 7396): lists are replaced, null removes.
    """
    before = None if present is None else complete(present["spec"])
    after = None if declared is None else complete(declared)
    changes = _changes(before, after)
    if before is None:
        return Plan(NOTHING) if after is None else Plan(CREATE, after, changes, None, after)
    if after is None:
        return Plan(DELETE, None, changes, before, None)
    is_now, will_be = comparable(before), comparable(after)
    patch = {
        key: merge_patch(before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if is_now.get(key) != will_be.get(key)
    }
    # what differs in its spelling alone stays as it is
    return Plan(PATCH, patch, changes, before, after) if patch else Plan(NOTHING, None, (), before, before)


def _changes(before: Spec | None, after: Spec | None) -> tuple[Change, ...]:
    was = {} if before is None else describe(before)
    will = {} if after is None else describe(after)
    names = [*will, *(name for name in was if name not in will)]
    return tuple(Change(name, was.get(name), will.get(name)) for name in names if was.get(name) != will.get(name))


def merge_patch(before: t.Any, after: t.Any) -> t.Any:
    """Return the JSON merge patch (RFC 7396) that makes ``after`` of ``before``; neither holds nulls."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    patch: dict[str, t.Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif before[key] != value:
            patch[key] = merge_patch(before[key], value)
    return patch


def text(spec: t.Mapping[str, t.Any] | None) -> str:
    """Return a spec as lines for a diff, empty for none."""
    return "" if spec is None else "".join(f"{name}: {said}\n" for name, said in describe(spec).items())
