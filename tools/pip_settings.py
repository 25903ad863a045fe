"""Print pip's effective index settings, as uv's options (one a line) or as a pip.conf."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import urllib.parse

UV_OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}
PLACES = ("index-url", "extra-index-url", "find-links")
OTHERS = ("cert", "client-cert", "proxy", "timeout", "default-timeout")


def read() -> dict[str, list[str]]:
    """What pip's files and environment variables say; the variables win."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    settings: dict[str, list[str]] = {}
    for origin in ("global.", "install.", ":env:."):
        for line in lines:
            key, _equals, value = line.partition("=")
            if key.startswith(origin):
                settings[key.removeprefix(origin)] = str(ast.literal_eval(value)).split()
    return {
        name: [value for value in values if name not in PLACES or exists(value)]
        for name, values in settings.items()
        if name in UV_OPTIONS or name in OTHERS
    }


def exists(place: str) -> bool:
    """Whether a local folder is there; of a remote one nothing is known before it is asked."""
    url = urllib.parse.urlsplit(place)
    return url.scheme not in ("", "file") or pathlib.Path(urllib.parse.unquote(url.path)).exists()


def main() -> None:
    settings = read()
    if sys.argv[1:] == ["--uv"]:
        for name, option in UV_OPTIONS.items():
            for value in settings.get(name, []):
                print(f"{option}={value}")
    else:
        print("[global]")
        for name, values in settings.items():
            if values:
                print(f"{name} = {' '.join(values)}")


if __name__ == "__main__":
    main()
