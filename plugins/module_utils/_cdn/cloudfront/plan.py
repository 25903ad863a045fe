# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What has to be done for CloudFront to hold what is declared, in order, and what that changes in words. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from ..._common.change import Change
from ..._common.errors import HeadroomError
from .model import (
    DEPLOYMENT,
    DISTRIBUTION,
    HIDDEN,
    KINDS,
    STAGING,
    Config,
    Deployment,
    Distribution,
    Observed,
    Piece,
    Said,
    items,
    lines,
    overlay,
    reference,
    references,
    same,
)
from .render import Rendered

DIRECT = "direct"
STAGED = "staged"
PROMOTED = "promoted"
ROLLED_BACK = "rolled_back"
ROLLOUTS = (DIRECT, STAGED, PROMOTED, ROLLED_BACK)
# what stands for a domain name that only CloudFront gives out
STAGING_DOMAIN = reference(STAGING, "domain_name")
POLICY = reference(DEPLOYMENT, "id")
# what a distribution keeps to itself when the staging one is promoted
_KEPT = ("Aliases", "ContinuousDeploymentPolicyId", "Staging", "CallerReference")


@dataclass(frozen=True)
class Step:
    """One thing to do: a verb, what kind of resource it is about, its name, and what to send."""

    action: str
    kind: str
    name: str
    payload: t.Any = field(default=None, repr=False)

    def as_dict(self) -> dict[str, str]:
        """Return the step as a module's return value, without what it sends."""
        return {"action": self.action, "kind": self.kind, "name": self.name}


@dataclass(frozen=True)
class Plan:
    """The steps in their order, what they change, and what is there after them, as far as that can be foretold."""

    steps: tuple[Step, ...]
    changes: tuple[Change, ...]
    before: t.Mapping[str, Said]
    after: t.Mapping[str, Said]


@dataclass(frozen=True)
class Declared:
    """What is to be: ``rendered`` is ``None`` for a CDN that is not to be. ``traffic`` is who gets to the staging distribution."""

    name: str
    rendered: Rendered | None = None
    tags: t.Mapping[str, str] | None = None
    rollout: str = DIRECT
    traffic: t.Mapping[str, t.Any] | None = None


def plan(observed: Observed, declared: Declared) -> Plan:
    """Compare what is there with what is declared.

    :raises HeadroomError: when there is no safe way from one to the other.
    """
    if declared.rendered is None:
        return _finish(observed, Observed(), _remove(observed, declared.name))
    if declared.rollout == ROLLED_BACK:
        return _roll_back(observed, declared)
    if declared.rollout == PROMOTED:
        return _promote(observed, declared, declared.rendered)
    if declared.rollout == STAGED:
        return _stage(observed, declared, declared.rendered)
    return _direct(observed, declared, declared.rendered)


# ---- the ways of a rollout


def _direct(observed: Observed, declared: Declared, rendered: Rendered) -> Plan:
    primary, steps = observed.primary, _make(observed, rendered)
    config = overlay(primary.config if primary else {}, rendered.config)
    if primary is None:
        config["CallerReference"] = declared.name
        steps.append(Step("create", DISTRIBUTION, declared.name, (config, dict(declared.tags or {}))))
        will = Distribution("", "", "", "", "", config, dict(declared.tags or {}))
    else:
        if not same(primary.config, config):
            if observed.deployment is not None and observed.deployment.enabled:
                raise HeadroomError(
                    f"Failed to change distribution {declared.name}: a staged configuration gets a part of its viewers. "
                    "Run with rollout=promoted or rollout=rolled_back first.",
                    code="staging_open",
                )
            steps.append(Step("update", DISTRIBUTION, declared.name, config))
        will = replace(primary, config=config, tags=_tag(steps, primary, declared))
    return _finish(observed, _with_pieces(replace(observed, primary=will), rendered), steps, declared.name)


def _stage(observed: Observed, declared: Declared, rendered: Rendered) -> Plan:
    primary, staging, deployment = observed.primary, observed.staging, observed.deployment
    if primary is None:
        raise HeadroomError(
            f"Failed to stage a configuration of {declared.name}: there is no distribution yet. Run with rollout=direct first.",
            code="no_primary",
        )
    is_open = deployment is not None and deployment.enabled
    if not is_open and _same_content(primary.config, overlay(primary.config, rendered.config)):
        return _finish(observed, _with_pieces(observed, rendered), _make(observed, rendered), declared.name)
    steps = _make(observed, rendered)
    config = _staging_config(staging.config if staging else primary.config, rendered)
    if staging is None:
        steps.append(Step("copy", STAGING, declared.name, f"{declared.name}-staging"))
        staging = Distribution("", "", STAGING_DOMAIN, "", "", {})
    if not same(staging.config, config):
        steps.append(Step("update", STAGING, declared.name, config))
    staging = replace(staging, config=config)
    traffic = {
        "StagingDistributionDnsNames": items([staging.domain_name]),
        "Enabled": True,
        "TrafficConfig": dict(declared.traffic or {}),
    }
    if deployment is None:
        steps.append(Step("create", DEPLOYMENT, declared.name, traffic))
        deployment = Deployment("", "", traffic)
    elif not same(deployment.config, traffic):
        steps.append(Step("update", DEPLOYMENT, declared.name, traffic))
        deployment = replace(deployment, config=traffic)
    policy = deployment.id or POLICY
    if primary.config.get("ContinuousDeploymentPolicyId") != policy:
        primary = replace(primary, config={**primary.config, "ContinuousDeploymentPolicyId": policy})
        steps.append(Step("update", DISTRIBUTION, declared.name, primary.config))
    will = replace(observed, primary=primary, staging=staging, deployment=deployment)
    return _finish(observed, _with_pieces(will, rendered), steps, declared.name)


def _promote(observed: Observed, declared: Declared, rendered: Rendered) -> Plan:
    primary, staging, deployment = observed.primary, observed.staging, observed.deployment
    failed = f"Failed to promote the staged configuration of {declared.name}"
    steps = _make(observed, rendered)
    if primary is not None and (deployment is None or not deployment.enabled):
        config = overlay(primary.config, rendered.config)
        if _same_content(primary.config, config):
            # it was promoted before; what promotion never carries over may still differ
            return _direct(observed, declared, rendered)
    if primary is None or staging is None or deployment is None or not deployment.enabled:
        raise HeadroomError(f"{failed}: nothing is staged. Run with rollout=staged first.", code="not_staged")
    differs = _differences(
        lines(staging.config, _known(observed)),
        lines(_staging_config(staging.config, rendered), _all(observed, rendered)),
    )
    if differs:
        names = ", ".join(change.what for change in differs[:3])
        raise HeadroomError(
            f"{failed}: what is staged is not what is declared ({names}). Run with rollout=staged first, and look at it again.",
            code="staged_differs",
            result={"changes": [change.as_dict() for change in differs]},
        )
    steps.append(Step("promote", DISTRIBUTION, declared.name))
    kept = {key: primary.config[key] for key in _KEPT if key in primary.config}
    config = {**{key: item for key, item in staging.config.items() if key not in _KEPT}, **kept}
    promoted = replace(primary, config=config)
    wanted = overlay(config, rendered.config)
    if not same(config, wanted):
        steps.append(Step("update", DISTRIBUTION, declared.name, wanted))
    promoted = replace(promoted, config=wanted, tags=_tag(steps, primary, declared))
    closed = replace(deployment, config={**deployment.config, "Enabled": False})
    return _finish(observed, replace(observed, primary=promoted, deployment=closed), steps, declared.name)


def _roll_back(observed: Observed, declared: Declared) -> Plan:
    deployment = observed.deployment
    if deployment is None or not deployment.enabled:
        return _finish(observed, observed, [])
    config = {**deployment.config, "Enabled": False}
    return _finish(
        observed,
        replace(observed, deployment=replace(deployment, config=config)),
        [Step("update", DEPLOYMENT, declared.name, config)],
    )


def _remove(observed: Observed, name: str) -> list[Step]:
    """Return the steps that take all of it away; CloudFront deletes only what is disabled everywhere."""
    steps = []
    primary, staging, deployment = observed.primary, observed.staging, observed.deployment
    if primary is not None:
        off = {key: item for key, item in primary.config.items() if key != "ContinuousDeploymentPolicyId"}
        off["Enabled"] = False
        if not same(primary.config, off):
            steps.append(Step("disable", DISTRIBUTION, name, off))
    if deployment is not None:
        steps.append(Step("delete", DEPLOYMENT, name))
    if staging is not None:
        if staging.config.get("Enabled"):
            steps.append(Step("disable", STAGING, name, {**staging.config, "Enabled": False}))
        steps.append(Step("delete", STAGING, name))
    if primary is not None:
        steps.append(Step("delete", DISTRIBUTION, name))
    return [*steps, *_delete(observed, set())]


# ---- parts of them


def _make(observed: Observed, rendered: Rendered) -> list[Step]:
    """Return the steps that make the pieces, or mend those that somebody has changed."""
    steps = []
    for piece in _sorted(rendered.pieces.values()):
        there = observed.pieces.get((piece.kind, piece.name))
        if there is None:
            steps.append(Step("create", piece.kind, piece.name, piece.config))
        elif not same(there.config, piece.config):
            steps.append(Step("update", piece.kind, piece.name, piece.config))
    return steps


def _delete(observed: Observed, needed: t.Collection[str]) -> list[Step]:
    unneeded = [piece for piece in observed.pieces.values() if piece.ref not in needed]
    return [Step("delete", piece.kind, piece.name) for piece in reversed(_sorted(unneeded))]


def _sorted(pieces: t.Iterable[Piece]) -> list[Piece]:
    order = list(KINDS)
    return sorted(pieces, key=lambda piece: (order.index(piece.kind), piece.name))


def _tag(steps: list[Step], primary: Distribution, declared: Declared) -> dict[str, str]:
    """Add the step that sets and removes tags, and return the tags after it."""
    was = dict(primary.tags)
    if declared.tags is None or dict(declared.tags) == was:
        return was
    gone = sorted(was.keys() - declared.tags.keys())
    new = {key: value for key, value in declared.tags.items() if was.get(key) != value}
    steps.append(Step("tag", DISTRIBUTION, declared.name, (new, gone)))
    return dict(declared.tags)


def _staging_config(present: t.Mapping[str, t.Any], rendered: Rendered) -> Config:
    """Return what a staging distribution has to hold: it has no names of its own."""
    config = overlay(present, {**rendered.config, "Aliases": items([]), "Staging": True})
    config.pop("ContinuousDeploymentPolicyId", None)
    return config


def _same_content(one: Config, other: Config) -> bool:
    """Return whether two configurations are the same but for what promotion leaves alone."""
    return same({**one, **dict.fromkeys(_KEPT)}, {**other, **dict.fromkeys(_KEPT)})


def _known(observed: Observed) -> dict[str, Piece]:
    return {piece.ref: piece for piece in observed.pieces.values()}


def _all(observed: Observed, rendered: Rendered) -> dict[str, Piece]:
    return {**_known(observed), **rendered.pieces}


def _with_pieces(observed: Observed, rendered: Rendered) -> Observed:
    made = {(piece.kind, piece.name): piece for piece in rendered.pieces.values()}
    return replace(observed, pieces={**observed.pieces, **made})


def _finish(observed: Observed, after: Observed, steps: list[Step], name: str | None = None) -> Plan:
    """Return the plan; with a name, what nothing refers to any longer is deleted too."""
    if name is not None:
        used = {ref for one in (after.primary, after.staging) if one is not None for ref in references(one.config)}
        steps = [*steps, *_delete(observed, used)]
        after = replace(after, pieces={key: piece for key, piece in after.pieces.items() if piece.ref in used})
    was, will = view(observed), view(after)
    return Plan(tuple(steps), tuple(_differences(was, will)), was, will)


def view(observed: Observed) -> dict[str, Said]:
    """Return all that is there in words."""
    pieces = _known(observed)
    found: dict[str, Said] = {}
    for one, title in ((observed.primary, ""), (observed.staging, "staging ")):
        if one is not None:
            found.update(lines(one.config, pieces, title))
    if observed.primary is not None:
        found.update({f"tag {key}": Said(value) for key, value in sorted(observed.primary.tags.items())})
    if observed.deployment is not None:
        found.update(lines(observed.deployment.config, {}, "continuous deployment "))
    used = {ref for one in (observed.primary, observed.staging) if one is not None for ref in references(one.config)}
    found.update({f"unused {ref}": Said("present") for ref in sorted(pieces.keys() - used)})
    return found


def _differences(was: t.Mapping[str, Said], will: t.Mapping[str, Said]) -> list[Change]:
    found = []
    for name in sorted(was.keys() | will.keys()):
        before, after = was.get(name), will.get(name)
        if before != after:
            texts = [None if said is None else HIDDEN if said.secret else said.text for said in (before, after)]
            if texts[0] == texts[1] == HIDDEN:
                texts[1] = f"{HIDDEN} (changed)"
            found.append(Change(name, texts[0], texts[1]))
    return found


def text(said: t.Mapping[str, Said], changes: t.Sequence[Change] = ()) -> str:
    """Return lines for a diff; ``changes`` tells which secrets are new ones."""
    changed = {change.what: change.after for change in changes}
    shown = {name: (changed.get(name) or HIDDEN) if item.secret else item.text for name, item in sorted(said.items())}
    return "".join(f"{name}: {line}\n" for name, line in shown.items())
