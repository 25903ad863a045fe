"""Give the virtual environments of ansible-test their pip without a download of its own.

ansible-test takes this for the bootstrap script that it would otherwise download. It gets the wanted pip from
wherever pip gets its packages.
"""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys

NOT_FOR_PIP = ("--no-setuptools", "--no-wheel")


def main() -> int:
    packages = [argument for argument in sys.argv[1:] if argument not in NOT_FOR_PIP]
    environment = {name: value for name, value in os.environ.items() if name != "GET_PIP"}
    ensurepip.bootstrap(default_pip=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *packages]
    return subprocess.call(command, env=environment)


sys.exit(main())
