# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may come, and which way, in a real nginx: countries by database and header, addresses of version 6, HTTP sent on to HTTPS."""

from __future__ import annotations

import datetime
import http.client
import pathlib
import ssl
import struct
import typing as t

import pytest
from balancers.world import Balancer, Server, get, installed
from ports import free_port


def written(value: t.Any) -> bytes:
    """Return a value as a MaxMind database has it."""
    if isinstance(value, dict):
        return bytes([7 << 5 | len(value)]) + b"".join(written(one) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return bytes([len(value), 4]) + b"".join(map(written, value))
    if isinstance(value, str):
        text = value.encode()
        return bytes([2 << 5 | len(text)]) + text
    # 2 and 4 bytes; 64 bits are of the kinds beyond the first byte
    kind, size = {"uint16": (5, 2), "uint32": (6, 4), "uint64": (9, 8)}[value[0]]
    head = bytes([kind << 5 | size]) if kind < 8 else bytes([size, kind - 7])
    return head + int(value[1]).to_bytes(size, "big")


def database(countries: dict[str, str]) -> bytes:
    """Return a database of countries by their first byte of an address of version 4."""
    data, places = b"", {}
    for code in sorted(set(countries.values())):
        places[code] = len(data)
        data += written({"country": {"iso_code": code}})
    # a tree of eight bits; the last of its nodes are made first seen, first numbered
    nodes: list[list[int | str | None]] = [[None, None]]
    for byte, code in countries.items():
        at = 0
        for bit in f"{int(byte):08b}"[:-1]:
            below = nodes[at][int(bit)]
            if below is None:
                nodes.append([None, None])
                below = nodes[at][int(bit)] = len(nodes) - 1
            at = t.cast(int, below)
        nodes[at][int(byte) % 2] = code
    count = len(nodes)

    def record(value: int | str | None) -> bytes:
        number = count if value is None else count + 16 + places[value] if isinstance(value, str) else value
        return struct.pack(">I", number)[1:]

    tree = b"".join(record(left) + record(right) for left, right in nodes)
    about = {
        "node_count": ("uint32", count),
        "record_size": ("uint16", 24),
        "ip_version": ("uint16", 4),
        "database_type": "Test-Country",
        "languages": ["en"],
        "binary_format_major_version": ("uint16", 2),
        "binary_format_minor_version": ("uint16", 0),
        "build_epoch": ("uint64", 1),
        "description": {"en": "test"},
    }
    return tree + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + written(about)


@pytest.fixture(name="world")
def world_fixture(tmp_path: pathlib.Path) -> t.Iterator[tuple[Balancer, Server]]:
    balancer, server = Balancer(tmp_path, installed()), Server("a1")
    try:
        yield balancer, server
    finally:
        balancer.stop()
        server.close()


def described(server: Server, virtual: list[dict[str, t.Any]], **options: t.Any) -> dict[str, t.Any]:
    upstream = {"name": "app", "servers": [{"address": server.address}]}
    servers = [{"name": f"v{number}", "upstream": "app", **one} for number, one in enumerate(virtual)]
    return {"upstreams": [upstream], "virtual_servers": servers, **options}


def status(port: int, client: str, **headers: str) -> int:
    return get(
        port, headers={"X-Forwarded-For": client, **{name.replace("_", "-"): one for name, one in headers.items()}}
    )[0]


def test_countries_are_known_from_a_database(world: tuple[Balancer, Server], tmp_path: pathlib.Path) -> None:
    balancer, server = world
    if "ngx_http_geoip2_module.so" not in balancer.build.modules:
        pytest.skip("nginx has no module for databases of countries")
    file = tmp_path / "countries.mmdb"
    file.write_bytes(database({"91": "DE", "92": "FR", "101": "US"}))
    allowed, denied, free = free_port(), free_port(), free_port()
    balancer.start(
        described(
            server,
            [
                {"port": allowed, "allow_countries": ["DE", "FR"]},
                {"port": denied, "deny_countries": ["DE"]},
                {"port": free},
            ],
            country={"database": str(file)},
            trusted_proxies=["127.0.0.1/32"],
        )
    )
    clients = {"91.0.0.1": "DE", "92.0.0.1": "FR", "101.0.0.1": "US", "10.0.0.1": "nowhere"}
    assert [status(allowed, client) for client in clients] == [200, 200, 403, 403]
    assert [status(denied, client) for client in clients] == [403, 200, 200, 200]
    assert [status(free, client) for client in clients] == [200] * 4


def test_countries_are_known_from_a_header_of_a_trusted_proxy_alone(world: tuple[Balancer, Server]) -> None:
    balancer, server = world
    port = free_port()
    virtual = [{"port": port, "allow_countries": ["DE"]}]
    trusting = described(server, virtual, country={"header": "X-Country"}, trusted_proxies=["127.0.0.1/32"])
    balancer.start(trusting)
    assert status(port, "198.51.100.1", X_Country="DE") == 200
    assert status(port, "198.51.100.1", X_Country="US") == 403
    assert status(port, "198.51.100.1") == 403
    # who connects is not trusted, whatever it says
    balancer.start({**trusting, "trusted_proxies": ["192.0.2.0/24"]})
    assert status(port, "192.0.2.1", X_Country="DE") == 403


def test_addresses_that_are_allowed_may_come_and_no_others(world: tuple[Balancer, Server]) -> None:
    balancer, server = world
    port = free_port()
    virtual = [{"port": port, "allow": ["198.51.100.0/24", "2001:db8::/32"], "deny": ["198.51.100.7/32"]}]
    balancer.start(described(server, virtual, trusted_proxies=["127.0.0.1/32"]))
    clients = {"198.51.100.1": 200, "198.51.100.7": 403, "203.0.113.1": 403, "2001:db8::1": 200, "2001:db9::1": 403}
    assert {client: status(port, client) for client in clients} == clients


def test_a_server_is_told_how_it_was_asked(world: tuple[Balancer, Server]) -> None:
    balancer, server = world
    port = free_port()
    balancer.start(described(server, [{"port": port}]))
    headers = {"Host": "shop.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example.com"}
    told = get(port, headers=headers)[2]["headers"]
    assert (told["host"], told["x-forwarded-host"]) == ("shop.example.com", "shop.example.com")
    assert told["x-forwarded-proto"] == "http"


def pem(names: list[str]) -> dict[str, str]:
    """Return a certificate that signs itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1))
    certificate = builder.not_valid_after(now + datetime.timedelta(1)).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    encoding = serialization.Encoding.PEM
    return {
        "certificate": certificate.public_bytes(encoding).decode(),
        "key": key.private_bytes(encoding, *form).decode(),
    }


def test_plain_http_is_sent_on_and_version_6_is_listened_on(world: tuple[Balancer, Server]) -> None:
    balancer, server = world
    secure, plain = free_port(), free_port()
    balancer.start(
        described(
            server,
            [
                {
                    "port": secure,
                    "tls": pem(["shop.test"]),
                    "server_names": ["shop.test"],
                    "redirect_port": plain,
                    "ipv6": True,
                },
                {"port": plain, "server_names": ["plain.test"]},
            ],
        )
    )
    for host in ("127.0.0.1", "::1"):
        code, headers, _said = get(plain, "/a?b=1", {"Host": "shop.test"}, host)
        assert (code, headers["Location"]) == (308, f"https://shop.test:{secure}/a?b=1")
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, secure, context=context, timeout=20)
        connection.request("GET", "/", headers={"Host": "shop.test"})
        assert connection.getresponse().status == 200
        connection.close()
    # another name at that port is served there
    assert get(plain, headers={"Host": "plain.test"})[0] == 200
