# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an API server is found: kubeconfigs with certificates, the service account of a pod, and what is left on the disk."""

from __future__ import annotations

import base64
import os
import pathlib
import stat
import typing as t

import pytest
import yaml
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube import connection
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.client import Client
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.connection import Access, parse_access
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError

NOTHING = {
    **dict.fromkeys(("kubeconfig", "context", "host", "token", "ca_cert", "client_cert", "client_key")),
    "validate_certs": True,
    "timeout_s": 30.0,
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Hide what this machine knows of clusters."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connection, "ACCOUNT", str(tmp_path))


def kubeconfig(folder: pathlib.Path, user: dict[str, t.Any], **cluster: t.Any) -> str:
    """Write a kubeconfig and return its path."""
    config = {
        "current-context": "main",
        "contexts": [{"name": "main", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": "https://k8s.example.com:6443/", **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    return str(folder / "config")


def found(path: str, **params: t.Any) -> Access:
    """What a kubeconfig gives."""
    return parse_access({**NOTHING, "kubeconfig": path, **params})


def encoded(text: str) -> str:
    """A text as a kubeconfig has it in its ``-data`` keys."""
    return base64.b64encode(text.encode()).decode()


def test_certificates_inline_and_in_files(tmp_path: pathlib.Path) -> None:
    user = {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY")}
    access = found(kubeconfig(tmp_path, user, **{"certificate-authority-data": encoded("CA")}))
    assert (access.url, access.ca) == ("https://k8s.example.com:6443", "CA")
    assert (access.client_cert, access.client_key, access.token) == ("CERT", "KEY", None)

    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    user = {"client-certificate": "cert", "client-key": str(tmp_path / "key"), "username": "me", "password": "hunter2"}
    access = found(kubeconfig(tmp_path, user, **{"certificate-authority": "ca", "proxy-url": "http://proxy:1"}))
    assert (access.ca, access.client_cert, access.client_key) == ("ca", "cert", "key")
    assert (access.user, access.password, access.proxy) == ("me", "hunter2", "http://proxy:1")


def test_certificates_are_checked_unless_either_says_not_to(tmp_path: pathlib.Path) -> None:
    path = kubeconfig(tmp_path, {})
    assert found(path).validate_certs
    assert not found(path, validate_certs=False).validate_certs
    assert not found(kubeconfig(tmp_path, {}, **{"insecure-skip-tls-verify": True})).validate_certs


@pytest.mark.parametrize(
    ("user", "cluster", "words"),
    [
        ({"client-certificate-data": "%"}, {}, "is not base64"),
        ({"client-certificate": "missing"}, {}, "cannot be read"),
        ({"auth-provider": {"name": "x"}}, {}, "use exec or a token"),
        ({"exec": {"command": "x"}}, {}, "needs a command and an apiVersion"),
        ({}, {"tls-server-name": "x"}, "not supported"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: pathlib.Path, user: t.Any, cluster: t.Any, words: str) -> None:
    with pytest.raises(OptionError) as raised:
        found(kubeconfig(tmp_path, user, **cluster))
    assert words in str(raised.value)
    assert str(raised.value).startswith("Option 'kubeconfig' has the value ")


def test_several_kubeconfigs_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    with pytest.raises(OptionError, match="give one file"):
        parse_access(NOTHING)


def test_a_plugin_that_is_not_there(tmp_path: pathlib.Path) -> None:
    user = {"exec": {"apiVersion": connection.EXEC_VERSIONS[0], "command": "headroom-has-no-such-plugin"}}
    with pytest.raises(HeadroomError, match=r"No such file or directory\. Install it") as raised:
        found(kubeconfig(tmp_path, user))
    assert raised.value.code == "no_credentials"


@pytest.mark.parametrize(("host", "url"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")])
def test_the_account_of_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, host: str, url: str) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "ca.crt").write_text("CA")
    access = parse_access(NOTHING)
    assert (access.url, access.token, access.ca, access.validate_certs) == (url, "secret", "CA", True)


def test_secrets_do_not_show(tmp_path: pathlib.Path) -> None:
    access = Access("https://k8s", token="hunter2", password="hunter2", client_key="hunter2")
    assert "hunter2" not in repr(access)
    assert access.scrub("the hunter2") == "the ********"
    with pytest.raises(OptionError) as raised:
        parse_access({**NOTHING, "host": "https://me:hunter2@k8s"})
    assert "hunter2" not in str(raised.value)


def test_keys_are_on_the_disk_for_this_user_alone_and_only_meanwhile() -> None:
    with Client(Access("https://k8s.invalid", ca="CA", client_cert="CERT", client_key="KEY")) as client:
        paths = [client._session.verify, *client._session.cert]
        assert [pathlib.Path(path).read_text() for path in paths] == ["CA", "CERT", "KEY"]
        assert {stat.S_IMODE(os.stat(path).st_mode) for path in paths} == {0o600}
        folder = os.path.dirname(paths[0])
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert not os.path.exists(folder)
