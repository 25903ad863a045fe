"""Let tests import this checkout as the collection headroom.scale, wherever it lies."""

from __future__ import annotations

import pathlib

import ansible_collections

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent

# the collections of the ansible package have the same parent, which is a package of its own: search this checkout first
ansible_collections.__path__ = [
    str(CHECKOUT / ".venv" / "collections" / "ansible_collections"),
    *ansible_collections.__path__,
]
