"""The role cdn as a whole, against moto over HTTP: buckets, distribution, policies and records; a second run changes nothing."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

pytest.importorskip("moto")

import boto3  # noqa: E402
from cdn.emulator import LOGIN, Emulator  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIABLES = {
    "cdn_name": "shop",
    "cdn_aliases": ["www.example.com"],
    "cdn_certificate": {"arn": "arn:aws:acm:us-east-1:123456789012:certificate/0f1e2d3c"},
    "cdn_cloudfront_zone": "example.com",
    "cdn_cloudfront_buckets": [{"name": "shop-static", "region": "us-east-1"}],
    "cdn_origins": [{"name": "static", "domain_name": "shop-static.s3.us-east-1.amazonaws.com", "type": "s3"}],
    "cdn_default_behavior": {"origin": "static"},
    "cdn_cloudfront_wait": False,
}


def play(directory: pathlib.Path, **variables: t.Any) -> dict[str, int]:
    """Run the role on localhost and return how many tasks did what."""
    playbook = directory / "play.yml"
    role = {"role": "headroom.scale.cdn", "vars": {**VARIABLES, **variables}}
    playbook.write_text(json.dumps([{"name": "CDN", "hosts": "localhost", "gather_facts": False, "roles": [role]}]))
    ended = subprocess.run(
        [
            str(ROOT / ".venv" / "bin" / "ansible-playbook"),
            "--inventory=localhost,",
            "--connection=local",
            # boto3 is where the tests are
            f"--extra-vars=ansible_python_interpreter={sys.executable}",
            str(playbook),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    return json.loads(ended.stdout[ended.stdout.index("{") :])["stats"]["localhost"]


def certificate() -> dict[str, str]:
    """Return a certificate, its key and the one above it, made for this test."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _one in range(2)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "www.example.com")
    ]
    made = [
        x509.CertificateBuilder()
        .subject_name(names[index])
        .issuer_name(names[0])
        .public_key(keys[index].public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(keys[0], hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
        for index in range(2)
    ]
    key = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return {"certificate": made[1], "key": key.decode(), "chain": made[0]}


def test_a_certificate_is_imported_renewed_under_its_name_and_removed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ACM gives an imported chain back as it was; moto adds a root of its own
    monkeypatch.setattr("moto.acm.models.AWS_ROOT_CA", b"")
    aws = Emulator()
    try:
        login = {"endpoint_url": aws.url, **LOGIN}
        acm = boto3.client(
            "acm",
            aws_access_key_id=LOGIN["access_key"],
            aws_secret_access_key=LOGIN["secret_key"],
            region_name="us-east-1",
            endpoint_url=aws.url,
        )
        own = {"cdn_certificate": None, "cdn_cloudfront_zone": "", "cdn_cloudfront_login": login}

        play(tmp_path, cdn_cloudfront_certificate=certificate(), **own)
        (first,) = acm.list_certificates()["CertificateSummaryList"]
        viewer = aws.one().config["ViewerCertificate"]
        assert viewer["ACMCertificateArn"] == first["CertificateArn"]

        renewed = certificate()
        assert play(tmp_path, cdn_cloudfront_certificate=renewed, **own)["changed"] == 1
        assert play(tmp_path, cdn_cloudfront_certificate=renewed, **own)["changed"] == 0
        (second,) = acm.list_certificates()["CertificateSummaryList"]
        assert second["CertificateArn"] == first["CertificateArn"]
        assert acm.get_certificate(CertificateArn=first["CertificateArn"])["Certificate"] == renewed["certificate"]

        play(tmp_path, cdn_cloudfront_certificate=renewed, cdn_state="absent", **own)
        assert acm.list_certificates()["CertificateSummaryList"] == []
    finally:
        aws.stop()


def test_the_role_wires_buckets_distribution_and_records(tmp_path: pathlib.Path) -> None:
    aws = Emulator()
    try:
        login = {"endpoint_url": aws.url, **LOGIN}
        own = {
            "aws_access_key_id": LOGIN["access_key"],
            "aws_secret_access_key": LOGIN["secret_key"],
            "region_name": "us-east-1",
            "endpoint_url": aws.url,
        }
        dns = boto3.client("route53", **own)
        zone = dns.create_hosted_zone(Name="example.com", CallerReference="1")["HostedZone"]["Id"]

        first = play(tmp_path, cdn_cloudfront_login=login)
        assert first["changed"] == 4
        policy = json.loads(boto3.client("s3", **own).get_bucket_policy(Bucket="shop-static")["Policy"])
        (statement,) = policy["Statement"]
        stored = aws.one()
        assert statement["Principal"] == {"Service": "cloudfront.amazonaws.com"}
        assert statement["Condition"] == {"StringEquals": {"AWS:SourceArn": [stored.more["arn"]]}}
        records = {
            record["Type"]: record["AliasTarget"]["DNSName"].rstrip(".")
            for record in dns.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
            if "AliasTarget" in record
        }
        assert records == dict.fromkeys(("A", "AAAA"), stored.more["domain_name"])

        aws.sent.clear()
        assert play(tmp_path, cdn_cloudfront_login=login)["changed"] == 0
        assert aws.writes == []
        assert aws.problems == []

        # one record has been pointed to another place, which keeps it
        elsewhere = {
            "Name": "www.example.com",
            "Type": "AAAA",
            "TTL": 60,
            "ResourceRecords": [{"Value": "2001:db8::1"}],
        }
        dns.change_resource_record_sets(
            HostedZoneId=zone, ChangeBatch={"Changes": [{"Action": "UPSERT", "ResourceRecordSet": elsewhere}]}
        )
        assert play(tmp_path, cdn_cloudfront_login=login, cdn_state="absent")["changed"] == 2
        found = dns.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
        assert [record["Type"] for record in found if record["Name"] == "www.example.com."] == ["AAAA"]
        assert play(tmp_path, cdn_cloudfront_login=login, cdn_state="absent")["changed"] == 0
        assert aws.problems == []
    finally:
        aws.stop()
