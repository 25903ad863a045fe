# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``cache_flush``: layer by layer, inner before outer, a second pass, and a look at what is served then."""

from __future__ import annotations

import time
import typing as t

from .._common.errors import HeadroomError
from .model import CLOUDFRONT, NGINX, REDIS, Counts, Layer, Step, number
from .options import CONTINUE, Options
from .plan import cost, not_before, sequence
from .probe import refill, verify

RETRY_S = 1.0
# what another attempt would only find again, or pay for again
_FINAL = {
    "access_denied",
    "authentication_failed",
    "bad_request",
    "mixed_nodes",
    "no_access",
    "not_completed",
    "tls_refused",
    "unauthorized",
}


def flush(options: Options, check: bool) -> dict[str, t.Any]:
    """Flush all layers and return the result.

    :param check: whether to count only.
    :raises HeadroomError: when a layer cannot be flushed, or something stale is still served; the result says what was done.
    """
    result = _Run(options, check or options.dry_run).flush()
    # a run that only counts changes nothing, in check mode too
    return {**result, "changed": False} if options.dry_run else result


class _Run:
    """One run."""

    def __init__(self, options: Options, check: bool) -> None:
        self.options = options
        self.check = check
        self.active = [layer for layer in options.layers if not layer.idle]
        self.steps = sequence([layer.name for layer in self.active], options.in_flight_s)
        self.rows = {layer.name: self._row(layer) for layer in options.layers}
        self.errors: dict[str, HeadroomError] = {}
        # what the first flush of each layer found: it is what a count would have said
        self.first: dict[str, Counts] = {}
        self.changed = False
        self.began_s = time.monotonic()
        # of the last flush of each layer
        self.started_s: dict[str, float] = {}
        self.ended_s: dict[str, float] = {}
        self.verified: list[dict[str, t.Any]] = []
        self.warmed: dict[str, t.Any] = {}

    @staticmethod
    def _row(layer: Layer) -> dict[str, t.Any]:
        state = "nothing_to_do" if layer.idle else "skipped"
        row = {"name": layer.name, "kind": layer.kind, "state": state, "what": "" if layer.idle else layer.describe()}
        return {**row, "found": 0, "sent": 0, "flushes": 0, "attempts": 0, "duration_s": 0.0, "error": ""}

    def flush(self) -> dict[str, t.Any]:
        """Do all of it."""
        for layer in self.active:
            layer.prepare()
        for step in self.steps if not self.check else self.steps[: len(self.active)]:
            if self.errors and self.options.on_failure != CONTINUE:
                break
            if step.layer not in self.errors:
                self._step(step)
        if self.errors:
            self._fail(next(iter(self.errors.values())))
        if not self.check and self.active:
            self._look()
        return self._result()

    # ---- a layer

    def _step(self, step: Step) -> None:
        layer = next(layer for layer in self.active if layer.name == step.layer)
        row = self.rows[step.layer]
        if not self.check:
            self._wait(step)
        began_s = self.started_s[step.layer] = time.monotonic()
        try:
            counts = self._attempts(layer, row, step.number > 1 or self.options.in_flight_s == 0)
        except HeadroomError as error:
            # what was done before it failed is done
            facts = {name: error.facts.pop(name, None) for name in ("found", "sent", "hosts")}
            sure = layer.kind in (REDIS, NGINX)
            self._add(row, Counts(facts["found"] or 0, facts["sent"] or 0, sure))
            row.update(state="failed", error=str(error))
            if facts["hosts"]:
                row["hosts"] = facts["hosts"]
            self.errors[layer.name] = error
        else:
            if self.check and not counts.sure:
                # each pass sends it
                counts.sent *= 2 if self.options.in_flight_s > 0 else 1
            self._add(row, counts)
            row.update(state="counted" if self.check else "flushed", flushes=row["flushes"] + (not self.check))
            self._keep(layer, row, counts)
        self.ended_s[layer.name] = time.monotonic()
        row["duration_s"] = round(row["duration_s"] + time.monotonic() - began_s, 3)

    def _wait(self, step: Step) -> None:
        """Wait until what was on its way when the layer inside of this one was clean has arrived."""
        due_s = not_before(step, [layer.name for layer in self.active], self.began_s, self.ended_s)
        time.sleep(max(0.0, due_s - time.monotonic()))

    def _attempts(self, layer: Layer, row: dict[str, t.Any], last: bool) -> Counts:
        """Flush or count, again after a failure that may pass."""
        lost = 0
        for left in range(self.options.retries, -1, -1):
            row["attempts"] += 1
            try:
                counts = layer.count() if self.check else layer.flush(last)
            except HeadroomError as error:
                lost += error.facts.pop("found", 0)
                error.facts["found"] = lost
                if not left or error.code in _FINAL:
                    raise
                time.sleep(RETRY_S * 2 ** (self.options.retries - left))
                continue
            counts.found += lost
            if "keys" in counts.more:
                counts.more["keys"] += lost
            return counts
        raise AssertionError("unreachable")

    def _add(self, row: dict[str, t.Any], counts: Counts) -> None:
        self.first.setdefault(row["name"], counts)
        row["found"] += counts.found
        row["sent"] += counts.sent
        self.changed = self.changed or counts.changes

    def _keep(self, layer: Layer, row: dict[str, t.Any], counts: Counts) -> None:
        """Add up what two flushes of a layer say of it."""
        for name, value in counts.more.items():
            if name == "invalidations":
                row[name] = [*row.get(name, ()), *value]
            elif name in ("keys", "members_pruned"):
                row[name] = row.get(name, 0) + value
            elif name == "keys_per_primary":
                before = row.get(name, {})
                row[name] = {node: before.get(node, 0) + keys for node, keys in value.items()}
            else:
                row[name] = value
        if layer.kind == CLOUDFRONT:
            row["cost"] = cost(row["sent"])

    # ---- afterwards

    def _look(self) -> None:
        """See what is served now, and fill the caches again."""
        options = self.options
        if options.probes:
            # what an outer cache has from an inner one may be as old as what that one holds
            tells = next((layer for layer in self.active if layer.kind != REDIS), self.active[0])
            since_s = self.started_s[tells.name]
            self.verified = verify(options.probes, options.trust, options.timeout_s, since_s)
            stale = [row for row in self.verified if not row["holds"]]
            if stale:
                self._fail(
                    HeadroomError(
                        f"Failed to verify the flush by {stale[0]['url']}: {stale[0]['reason'].rstrip('.')}. Look for a cache that is not "
                        "among the layers, and for requests that take longer than in_flight_s.",
                        code="stale",
                        stale=len(stale),
                    )
                )
        if options.warm and options.warm.places:
            self.warmed = refill(options.warm, options.trust, options.timeout_s)

    def _fail(self, error: HeadroomError) -> t.NoReturn:
        result = self._result()
        others = [one for one in self.errors.values() if one is not error]
        error.result = {**result, "errors": [one.as_dict() for one in others]}
        raise error

    def _result(self) -> dict[str, t.Any]:
        before, after = [], []
        for layer in self.active:
            counts = self.first.get(layer.name)
            if counts is None:
                continue
            # a count and a flush say the same of a layer
            if layer.kind == REDIS:
                keys = counts.more.get("keys", counts.found)
                before.append(f"{layer.name}: {number(keys, 'keys')} of {layer.describe()}")
                after.append(f"{layer.name}: 0 keys of {layer.describe()}")
            else:
                before.append(f"{layer.name}: {layer.describe()}")
                done = "" if layer.name in self.errors else ", purged"
                after.append(f"{layer.name}: {layer.describe()}{done}")
        return {
            "changed": self.changed,
            "summary": self._summary(),
            "targets": {**self.options.targets.as_dict(), "ignored": list(self.options.ignored)},
            "plan": [step.as_dict() for step in self.steps],
            "layers": [self.rows[layer.name] for layer in self.options.layers],
            "verify": self.verified,
            "warm": self.warmed,
            "duration_s": round(time.monotonic() - self.began_s, 3),
            "diff": {
                "before": "".join(f"{line}\n" for line in before),
                "after": "".join(f"{line}\n" for line in (after if self.changed else before)),
                "before_header": "caches",
                "after_header": "caches",
            },
        }

    def _summary(self) -> str:
        if not self.active:
            return "Nothing is to be flushed."
        rows = [self.rows[layer.name] for layer in self.active]
        said = []
        for row in rows:
            if row["state"] in ("skipped", "failed"):
                said.append(f"{row['name']} {row['state']}")
            elif row["kind"] == REDIS:
                said.append(f"{number(row.get('keys', 0), 'keys')} in {row['name']}")
            else:
                said.append(
                    f"{number(row['sent'], 'paths' if row['kind'] == CLOUDFRONT else 'requests')} to {row['name']}"
                )
        return f"{'Would flush' if self.check else 'Flushed'}: {', '.join(said)}."
