# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""From entities to what is flushed, layer by layer, and in which order. Pure.

The order, and why: a fetch that began before a cache was flushed may store what it read after the flush. So a cache is clean for good only
when it is flushed again after the caches and the source inside of it are clean, and after each fetch that had begun before that has ended.
The first pass flushes all layers at once, inner before outer, so that most readers see the new content soon. The second pass
flushes each layer again, inner before outer, and waits for the longest request before each of them: one wait for all layers would let an
outer one store again what a fetch had read from an inner one just before that was flushed for the last time.
"""

from __future__ import annotations

import re
import typing as t

from . import globs
from .model import KINDS, Step, Targets

# limits and prices of CloudFront, per distribution and per account
MAX_PATHS, MAX_WILDCARDS = 3000, 15
FREE_PATHS_A_MONTH, USD_PER_PATH = 1000, 0.005
PLACEHOLDER = "{id}"

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH = re.compile(r"/[!-)+-~]*\*?")
_TAG = re.compile(r"[!-+\--~]+")

Rules = t.Mapping[str, t.Mapping[str, t.Sequence[str]]]


class Unusable(ValueError):
    """Something that cannot be flushed: ``where`` it was given, its ``value`` and the ``remedy``."""

    def __init__(self, where: str, value: t.Any, remedy: str) -> None:
        """Keep all three."""
        super().__init__(f"{where}: {value!r}: {remedy}")
        self.where, self.value, self.remedy = where, value, remedy


def expand(rules: Rules, entities: t.Iterable[t.Mapping[str, t.Any]], direct: Rules | None = None) -> Targets:
    """Return what the rules make of the entities, together with what was given directly, each thing once.

    :param entities: each maps types to an id or a list of ids.
    :param direct: ``{"": {"patterns": [...], ...}}``, without placeholders.
    :raises Unusable: for a type without a rule, and for what cannot be a key, a pattern, a tag or a path.
    """
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for kind, given in (direct or {}).get("", {}).items():
        found[kind].update(checked(kind, kind, one) for one in given)
    for number, entity in enumerate(entities):
        for name, ids in entity.items():
            if name not in rules:
                known = ", ".join(sorted(rules)) or "none"
                raise Unusable(f"entities[{number}]", name, f"give a type that rules has, which has {known}.")
            for one in ids if isinstance(ids, (list, tuple)) else [ids]:
                text = identifier(f"entities[{number}].{name}", one)
                for kind, templates in rules[name].items():
                    found[kind].update(
                        checked(kind, f"rules.{name}.{kind}", _filled(kind, template, text)) for template in templates
                    )
    return Targets(**{kind: tuple(sorted(values)) for kind, values in found.items()})


def identifier(where: str, given: t.Any) -> str:
    """Return an id as text.

    :raises Unusable: when it is none; an empty one would make patterns that match too much.
    """
    if isinstance(given, bool) or not isinstance(given, (str, int)) or not str(given).strip():
        raise Unusable(where, given, "give an id as a number or as text that is not empty.")
    if not str(given).isprintable():
        raise Unusable(where, given, "give an id of printable characters.")
    return str(given)


def _filled(kind: str, template: str, text: str) -> str:
    """Return a template with an id in it; what the id contains means nothing but itself there."""
    if kind == "patterns":
        text = globs.escape(text)
    elif kind == "paths":
        text = "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())
    return template.replace(PLACEHOLDER, text)


def checked(kind: str, where: str, one: str) -> str:
    """Return what is to be flushed.

    :raises Unusable: when it cannot be, or would be all that there is.
    """
    if not one.strip():
        raise Unusable(where, one, "give text that is not empty.")
    if kind == "patterns":
        try:
            broad = globs.is_broad(one)
        except ValueError as error:
            raise Unusable(where, one, f"{error}; put a backslash before it.") from error
        if broad:
            raise Unusable(where, one, "it matches all keys; give a narrower pattern, or scope 'all' with confirm_all.")
    elif kind == "tags" and not _TAG.fullmatch(one):
        raise Unusable(where, one, "give a tag of printable ASCII characters without spaces and commas.")
    elif kind == "paths":
        if len(one) > 4000 or not _PATH.fullmatch(one):
            remedy = "give a path that begins with '/', percent-encoded, of at most 4000 characters, with '*' at its end alone."
            raise Unusable(where, one, remedy)
        if one == "/*":
            raise Unusable(where, one, "it is every path; give a narrower one, or scope 'all' with confirm_all.")
    return one


def sequence(layers: t.Sequence[str], in_flight_s: float) -> list[Step]:
    """Return the steps for layers, the inner ones first.

    A step of the second pass waits for ``in_flight_s`` after the last flush of the layer inside of it; the first of them, after the start.
    """
    steps = [Step(name, 1) for name in layers]
    if in_flight_s > 0:
        steps += [Step(name, 2, in_flight_s) for name in layers]
    return steps


def not_before(step: Step, layers: t.Sequence[str], began_s: float, ended_s: t.Mapping[str, float]) -> float:
    """Return when a step may begin, on the clock of the other times.

    :param began_s: when the run began; the source had changed by then.
    :param ended_s: when the last flush of each layer ended.
    """
    inner = layers.index(step.layer) - 1
    return (began_s if inner < 0 else ended_s[layers[inner]]) + step.wait_s if step.wait_s else began_s


def is_wildcard(path: str) -> bool:
    """Whether a path stands for all that begin with it. A tag, as "#tag", never does."""
    return path.endswith("*") and not path.startswith("#")


def covers(wildcard: str, path: str) -> bool:
    """Whether a path with a star at its end stands for another path too."""
    return is_wildcard(wildcard) and wildcard != path and path.startswith(wildcard[:-1])


def coalesce(paths: t.Iterable[str], max_paths: int | None = None) -> list[str]:
    """Return paths without those that a wildcard among them covers, sorted.

    :param max_paths: join siblings below their folder, the deepest and largest folders first, until there are no more than so many.
    :raises Unusable: when only a wildcard for everything would be few enough.
    """
    found = _bare(paths)
    while max_paths is not None and len(found) > max_paths:
        folders: dict[str, int] = {}
        for path in found:
            # a folder's own wildcard joins with its siblings one level further up
            folder = path.rstrip("*").rstrip("/").rpartition("/")[0] + "/"
            folders[folder] = folders.get(folder, 0) + 1
        folders.pop("/", None)
        if not folders:
            remedy = f"{len(found)} paths remain after all folders were joined; give a larger number."
            raise Unusable("cloudfront.max_paths", max_paths, remedy)
        # a folder with one path alone is joined only to get further up, with its like
        ranked = sorted(((count > 1, one.count("/"), count, one) for one, count in folders.items()), reverse=True)
        joins, depth, _count, first = ranked[0]
        like = [
            (count, one)
            for *rank, count, one in ranked
            if rank == [joins, depth] and (joins or _above(one) == _above(first))
        ]
        spare, joined = len(found) - max_paths, []
        for count, folder in like:
            joined.append(f"{folder}*")
            spare -= count - 1
            if joins and spare <= 0:
                break
        found = _bare([*found, *joined])
    return found


def _above(folder: str) -> str:
    return folder[:-1].rpartition("/")[0]


def _bare(paths: t.Iterable[str]) -> list[str]:
    """Return paths that no wildcard among them covers; sorted, a wildcard comes before what it covers or between it and its like."""
    given = set(paths)
    starts = {path[:-1] for path in given if is_wildcard(path)}
    lengths = sorted({len(start) for start in starts})

    def covered(path: str) -> bool:
        own = path[:-1] if is_wildcard(path) else None
        return any(path[:length] in starts and path[:length] != own for length in lengths if length <= len(path))

    return sorted(path for path in given if not covered(path))


def batches(paths: t.Sequence[str]) -> list[list[str]]:
    """Return paths in as many groups as CloudFront's limits on what is in progress at the same time make of them."""
    wildcards = [path for path in paths if is_wildcard(path)]
    plain = [path for path in paths if not is_wildcard(path)]
    groups = []
    while wildcards or plain:
        head, wildcards = wildcards[:MAX_WILDCARDS], wildcards[MAX_WILDCARDS:]
        room = MAX_PATHS - len(head)
        groups.append([*head, *plain[:room]])
        plain = plain[room:]
    return groups


def cost(paths: int) -> dict[str, float]:
    """Return what invalidating so many paths costs: at least, with all that is free in a month left, and at most, with none left."""
    return {
        "usd_at_least": round(max(0, paths - FREE_PATHS_A_MONTH) * USD_PER_PATH, 3),
        "usd_at_most": round(paths * USD_PER_PATH, 3),
    }
