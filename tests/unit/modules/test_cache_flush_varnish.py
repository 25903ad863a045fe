# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Varnish with the VCL of the documentation: what is purged, banned and flushed by tag is fetched anew, and nothing else."""

from __future__ import annotations

import collections
import glob
import json
import os
import pathlib
import shutil
import subprocess
import time
import typing as t
import urllib.error
import urllib.request

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.modules import cache_flush
from ports import free_port
from web.server import Handler, Server

ROOT = pathlib.Path(__file__).resolve().parents[3]
PLACES = [ROOT / ".cache" / "varnish", pathlib.Path("/")]
HOST = "shop.example.com"
TAGS = {"/u/1": "user-1 all-users", "/u/2": "user-2 all-users", "/u/10": "user-10 all-users"}
PAGES = [*TAGS, "/u/1?page=2", "/about", "/about/us"]


class Varnish:
    """Varnish before a server that counts."""

    def __init__(self, origin: Server, fetched: collections.Counter[str], url: str) -> None:
        self.origin, self.fetched, self.url = origin, fetched, url

    def read(self, host: str = HOST) -> list[str]:
        """Ask for all pages and return those that were not kept."""
        before = dict(self.fetched)
        for page in PAGES:
            request = urllib.request.Request(f"{self.url}{page}", headers={"Host": host})
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.status == 200
                # how the cache remembers where it is from is nobody's business
                assert not {"x-url", "x-host"} & {name.lower() for name in answer.headers}
        return [page for page in PAGES if self.fetched[page] > before.get(page, 0)]


@pytest.fixture(name="varnish")
def varnish_fixture(tmp_path: pathlib.Path) -> t.Iterator[Varnish]:
    root = next((place for place in PLACES if (place / "usr/sbin/varnishd").exists()), None)
    if root is None or shutil.which("cc") is None:
        pytest.skip("no Varnish, or no compiler for its VCL: run tools/unpack-servers on Debian")
    fetched: collections.Counter[str] = collections.Counter()

    class Origin(Handler):
        def do_GET(self) -> None:
            fetched[self.path] += 1
            self.send_response(200)
            self.send_header("Cache-Control", "max-age=3600")
            if self.path in TAGS:
                self.send_header("xkey", TAGS[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()

    text = (ROOT / "docs" / "cache-flush.md").read_text().partition("## Varnish\n")[2].partition("## ")[0]
    rules = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    assert '"192.0.2.5"' in rules
    port = free_port()
    libraries = glob.glob(f"{root}/usr/lib/*-linux-gnu")[:1]
    with Server(Origin) as origin:
        backend = f'backend default {{ .host = "127.0.0.1"; .port = "{origin.url.rpartition(":")[2]}"; }}'
        vcl = f"vcl 4.1;\n{backend}\n{rules}".replace('"192.0.2.5"', '"127.0.0.1"')
        (tmp_path / "rules.vcl").write_text(vcl)
        command = [f"{root}/usr/sbin/varnishd", "-F", "-j", "none", "-n", str(tmp_path / "work"), "-s", "malloc,16m"]
        command += ["-a", f"127.0.0.1:{port}", "-T", "none", "-f", str(tmp_path / "rules.vcl")]
        command += [word for place in libraries for word in ("-p", f"vmod_path={place}/varnish/vmods")]
        paths = ":".join(path for place in libraries for path in (place, f"{place}/varnish"))
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env={**os.environ, "LD_LIBRARY_PATH": paths}, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                deadline = time.monotonic() + 60
                while True:
                    try:
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/up", timeout=5).close()
                        break
                    except urllib.error.URLError:
                        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                        assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
                        time.sleep(0.05)
                varnish = Varnish(origin, fetched, f"http://127.0.0.1:{port}")
                assert varnish.read() == PAGES
                assert varnish.read() == []
                yield varnish
            finally:
                process.terminate()
                process.wait(20)


def flush(varnish: Varnish, capsys: pytest.CaptureFixture[str], **params: t.Any) -> dict[str, t.Any]:
    """Flush once, which must succeed."""
    layer = {"name": "varnish", "kind": "varnish", "urls": [varnish.url], "host": HOST, "tags_header": "xkey-purge"}
    given = {"http_caches": [layer], "in_flight_s": 0, "retries": 0, **params}
    with patch_module_args(given), pytest.raises(SystemExit) as ended:
        cache_flush.main()
    result = json.loads(capsys.readouterr().out)
    assert not ended.value.code, result["msg"]
    return dict(result)


@pytest.mark.parametrize(
    ("params", "gone"),
    [
        ({"paths": ["/u/1"]}, ["/u/1"]),
        ({"paths": ["/about*"]}, ["/about", "/about/us"]),
        ({"paths": ["/u/1*", "/about"]}, ["/u/1", "/u/10", "/u/1?page=2", "/about"]),
        # what would match anything in a regular expression is itself here
        ({"paths": ["/.*"]}, []),
        ({"tags": ["user-1"]}, ["/u/1"]),
        ({"tags": ["user-1", "user-2"]}, ["/u/1", "/u/2"]),
        ({"tags": ["all-users"], "paths": ["/about/us"]}, [*TAGS, "/about/us"]),
        ({"scope": "all", "confirm_all": True}, PAGES),
    ],
)
def test_what_is_flushed_is_fetched_anew_and_nothing_else(
    varnish: Varnish, capsys: pytest.CaptureFixture[str], params: dict[str, t.Any], gone: list[str]
) -> None:
    assert varnish.read("other.example.com") == PAGES
    result = flush(varnish, capsys, **params)
    assert [row["state"] for row in result["layers"]] == ["flushed"]
    expected = [page for page in PAGES if page in gone]
    assert varnish.read() == expected
    # another name has pages of its own; tags are of all names
    assert varnish.read("other.example.com") == [page for page in expected if params.get("tags") and page in TAGS]


def test_who_may_not_purge_is_refused(varnish: Varnish, capsys: pytest.CaptureFixture[str]) -> None:
    layer = {"name": "varnish", "kind": "varnish", "urls": [varnish.url], "method": "DELETE"}
    with (
        patch_module_args({"http_caches": [layer], "in_flight_s": 0, "retries": 0, "paths": ["/u/1"]}),
        pytest.raises(SystemExit),
    ):
        cache_flush.main()
    assert "Failed to DELETE /u/1 on" in json.loads(capsys.readouterr().out)["msg"]
    assert varnish.read() == []
