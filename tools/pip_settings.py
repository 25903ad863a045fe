"""Print where and how pip gets its packages: as a pip.conf, or with --uv as environment variables for uv."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import urllib.parse

UV_VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "trusted-host": "UV_INSECURE_HOST",
}
SEPARATED_BY_COMMA = {"UV_FIND_LINKS"}
PLACES = {"extra-index-url", "find-links", "index-url"}


def read() -> dict[str, list[str]]:
    """What pip's files and environment variables say; the variables win."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    settings: dict[str, list[str]] = {}
    for origin in ("global.", "install.", ":env:."):
        for line in lines:
            key, _equals, value = line.partition("=")
            name = key.removeprefix(origin)
            if key.startswith(origin) and name in UV_VARIABLES:
                values = str(ast.literal_eval(value)).split()
                settings[name] = [value for value in values if name not in PLACES or exists(value)]
    return {name: values for name, values in settings.items() if values}


def exists(place: str) -> bool:
    """Whether a local folder is there; of a remote one nothing is known before it is asked."""
    url = urllib.parse.urlsplit(place)
    return url.scheme not in ("", "file") or pathlib.Path(urllib.parse.unquote(url.path)).exists()


def main() -> None:
    settings = read()
    if sys.argv[1:] == ["--uv"]:
        for name, values in settings.items():
            variable = UV_VARIABLES[name]
            print(f"{variable}={(',' if variable in SEPARATED_BY_COMMA else ' ').join(values)}")
    else:
        print("[global]")
        for name, values in settings.items():
            print(f"{name} = {' '.join(values)}")


if __name__ == "__main__":
    main()
