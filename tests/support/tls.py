"""A certificate for servers of the tests."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path


def self_signed_certificate(directory: Path) -> Path:
    """
    Make a self-signed certificate for 127.0.0.1.

    :return: a file with the certificate and its key. Beside it is a link under the name that ``openssl rehash`` gives.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    # In lower case, as the hash of the name takes it.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's etlworks")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    # OpenSSL hashes the name without the header of its outermost sequence, two bytes here.
    digest = hashlib.sha1(name.public_bytes()[2:]).digest()  # noqa: S324  # OpenSSL's choice
    (directory / f"{int.from_bytes(digest[:4], 'little'):08x}.0").symlink_to(path.name)
    return path
