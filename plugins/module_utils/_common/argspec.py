# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Argument specs that merge: options that belong together are one spec, and a module is the sum of its specs."""

from __future__ import annotations

import typing as t


class ArgumentSpec:
    """One mergeable family of module options together with the rules that hold between them."""

    _RULES = ("mutually_exclusive", "required_together", "required_one_of", "required_if")

    def __init__(self, options: dict[str, t.Any] | None = None, **rules: t.Any) -> None:
        """Take the options of :class:`AnsibleModule`'s ``argument_spec`` and its rules by their own names.

        :param options: option name to its specification.
        :param rules: any of ``mutually_exclusive``, ``required_together``, ``required_one_of`` and ``required_if``
            (lists), and ``required_by`` (dict).
        """
        self.options: dict[str, t.Any] = dict(options or {})
        self.rules: dict[str, list[t.Any]] = {name: list(rules.pop(name, ())) for name in self._RULES}
        self.required_by: dict[str, t.Any] = dict(rules.pop("required_by", {}))
        if rules:
            raise TypeError("unknown rules: " + ", ".join(sorted(rules)))

    def merge(self, *others: ArgumentSpec) -> ArgumentSpec:
        """Return a new spec that holds this one's options and rules and those of ``others``; a name may come only once."""
        merged = ArgumentSpec(self.options, required_by=self.required_by, **self.rules)
        for other in others:
            twice = merged.options.keys() & other.options.keys()
            if twice:
                raise ValueError("options declared twice: " + ", ".join(sorted(twice)))
            merged.options.update(other.options)
            merged.required_by.update(other.required_by)
            for name in self._RULES:
                merged.rules[name].extend(other.rules[name])
        return merged

    def to_kwargs(self) -> dict[str, t.Any]:
        """Return the keyword arguments for :class:`AnsibleModule`."""
        return {"argument_spec": self.options, "required_by": self.required_by, **self.rules}
