"""Who may not join the ring, each with the error that both sides see."""

from __future__ import annotations

import datetime
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from languagepipes_api.names import Identity
from languagepipes_node.net.errors import TlsError, describe
from languagepipes_node.net.tls import TlsFiles, identity_from_uri
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import LinkLost, RingDown
from languagepipes_node.wire.frame import Kind, control_frame
from languagepipes_node.wire.handshake import dial
from languagepipes_node.wire.hello import new_hello, own_entry, parse_close
from languagepipes_node.wire.link import read_control
from languagepipes_node.wire.ring import Epoch, Ring
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_operator.certificates.authority import KeyPair, issue, new_ca, write_tls_dir
from support.waiting import eventually
from support.wire_ring import FAST, Pki, identity, make_plan

PLAN = make_plan(stages=2)
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def stage(pki: Pki, stack: ExitStack) -> StageCommunicator:
    """Stage 1, waiting for its predecessor, the End Model."""
    communicator = StageCommunicator(
        identity(1), PLAN, pki.files(identity(1)), "127.0.0.1:0", "127.0.0.1:1", timing=FAST
    )
    communicator.start()
    stack.callback(communicator.close)
    return communicator


def without_san(ca: KeyPair) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    ca_key = serialization.load_pem_private_key(ca.key, password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "end-model")]))
        .issuer_name(ca.x509.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(hours=1))
        .sign(ca_key, hashes.SHA256())
    )
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


# What the claimant holds; what it is told; what the stage's log says.
CLAIMANTS: dict[str, tuple[Callable[[KeyPair], KeyPair], str, str]] = {
    "a stranger's CA": (
        lambda ca: issue(new_ca("default", "p"), identity(0)),
        "TLS: tlsv1 alert unknown ca",
        "certificate not accepted: unable to get local issuer certificate",
    ),
    "expired": (
        lambda ca: issue(ca, identity(0), now=NOW - datetime.timedelta(days=91)),
        "TLS: sslv3 alert certificate expired",
        "certificate not accepted: certificate has expired",
    ),
    "not yet valid": (
        lambda ca: issue(ca, identity(0), now=NOW + datetime.timedelta(hours=2)),
        "TLS: sslv3 alert bad certificate",
        "certificate not accepted: certificate is not yet valid",
    ),
    "another pipe": (
        lambda ca: issue(ca, identity(0, pipe="q")),
        "stage 1 (s1): refused: spiffe://languagepipes.io/ns/default/pipe/q/chain/0/end-model is not the predecessor "
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/0/end-model",
        "is not the predecessor",
    ),
    "another replica": (
        lambda ca: issue(ca, Identity("default", "p", 1, "end-model")),
        "stage 1 (s1): refused: spiffe://languagepipes.io/ns/default/pipe/p/chain/1/end-model is not the predecessor "
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/0/end-model",
        "is not the predecessor",
    ),
    "another stage": (
        lambda ca: issue(ca, identity(2)),
        "stage 1 (s1): refused: spiffe://languagepipes.io/ns/default/pipe/p/chain/0/stage/2 is not the predecessor "
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/0/end-model",
        "is not the predecessor",
    ),
    "the store": (
        lambda ca: issue(ca, Identity("default", "p", -1, "store")),
        "stage 1 (s1): refused: spiffe://languagepipes.io/ns/default/pipe/p/store is not the predecessor "
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/0/end-model",
        "is not the predecessor",
    ),
    "no name at all": (
        without_san,
        "closed",
        "certificate has 0 URI names, and must have exactly one: the member's identity",
    ),
}


@pytest.mark.parametrize("who", CLAIMANTS)
def test_only_the_predecessor_may_connect(
    who: str, stage: StageCommunicator, pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, told, logged = CLAIMANTS[who]
    write_tls_dir(tmp_path / "tls", pki.ca, make(pki.ca))
    caplog.set_level(logging.WARNING)
    connection = TlsTransport(TlsFiles(tmp_path / "tls")).dial(stage.address, 1.0)
    hello = new_hello(PLAN, identity(0), Epoch(1, b"abcdefgh"))
    hello = hello.with_entry(own_entry(Ring(identity(0), PLAN), kv_id=b"k" * 8, seen=Epoch(0, bytes(8))))
    try:
        connection.write(control_frame(Kind.HELLO, bytes.fromhex(PLAN.hash), hello.epoch, hello.pack()))
        answer = str(parse_close(read_control(connection, kinds=(Kind.CLOSE,))[1]))
    except EOFError:
        answer = "closed"
    except OSError as error:
        answer = "closed" if isinstance(error, ConnectionError) else describe(error)
    finally:
        connection.close(0)
    assert answer == told
    eventually(lambda: logged in caplog.text)
    assert stage.receive(0.05) is None
    assert stage.state.epoch is None


def test_a_client_without_a_certificate_is_refused(stage: StageCommunicator, pki: Pki) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        closing(_connect(stage)) as plain,
        context.wrap_socket(plain) as client,
        pytest.raises(ssl.SSLError, match="TLSV13_ALERT_CERTIFICATE_REQUIRED"),
    ):
        client.recv(1)


def test_a_client_of_an_older_tls_is_refused(stage: StageCommunicator, pki: Pki) -> None:
    context = pki.files(identity(0)).client_context()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    with closing(_connect(stage)) as plain, pytest.raises(ssl.SSLError, match="TLSV1_ALERT_PROTOCOL_VERSION"):
        old.wrap_socket(plain)


def test_plain_tcp_is_refused(stage: StageCommunicator, caplog: pytest.LogCaptureFixture) -> None:
    with closing(_connect(stage)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(2)
        try:
            while plain.recv(4096):
                pass
        except ConnectionError:
            pass
    eventually(lambda: "stage 1 (s1): a connection was refused: TLS: http request" in caplog.text)


def test_a_peer_that_says_nothing_is_given_up_after_the_deadline(
    stage: StageCommunicator, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(_connect(stage)) as plain:
        plain.settimeout(3)
        assert plain.recv(1) == b""
    eventually(lambda: "stage 1 (s1): a connection was refused: timed out" in caplog.text)


def test_silent_strangers_do_not_keep_the_predecessor_out(stage: StageCommunicator, pki: Pki) -> None:
    strangers = [_connect(stage) for _ in range(7)]
    try:
        _dial(stage, pki.files(identity(0)))
    finally:
        for stranger in strangers:
            stranger.close()


def test_the_server_must_be_the_successor(pki: Pki, stack: ExitStack) -> None:
    communicator = StageCommunicator(
        identity(2), PLAN, pki.files(identity(2)), "127.0.0.1:0", "127.0.0.1:1", timing=FAST
    )
    communicator.start()
    stack.callback(communicator.close)
    with pytest.raises(LinkLost) as raised:
        _dial(communicator, pki.files(identity(0)))
    assert str(raised.value) == (
        f"end-model: {communicator.address} is spiffe://languagepipes.io/ns/default/pipe/p/chain/0/stage/2, "
        "not the successor spiffe://languagepipes.io/ns/default/pipe/p/chain/0/stage/1"
    )


def test_a_server_of_a_stranger_is_not_spoken_to(stage: StageCommunicator, tmp_path: Path) -> None:
    stranger = new_ca("default", "p")
    write_tls_dir(tmp_path / "tls", stranger, issue(stranger, identity(0)))
    with pytest.raises(LinkLost) as raised:
        _dial(stage, TlsFiles(tmp_path / "tls"))
    assert str(raised.value) == (
        f"end-model: stage 1 (s1) at {stage.address} cannot be reached: "
        "certificate not accepted: self-signed certificate in certificate chain"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "https://languagepipes.io/ns/default/pipe/p/store",
        "spiffe://elsewhere.io/ns/default/pipe/p/store",
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/0/stage/0",
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/00/stage/1",
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/0/stage/1/extra",
        "spiffe://languagepipes.io/ns/default/pipe/p/chain/-1/end-model",
        "spiffe://languagepipes.io/ns/de/fault/pipe/p/store",
        "spiffe://languagepipes.io/ns/default/pipe/p/store\n",
    ],
)
def test_a_uri_that_names_no_member_is_refused(uri: str) -> None:
    with pytest.raises(TlsError, match="which is no member of a pipe"):
        identity_from_uri(uri)


@pytest.mark.parametrize(
    "who",
    [identity(0), identity(64), Identity("a-b", "c-d", 3, "stage", 2), Identity("n", "p", -1, "store"),
     Identity("n", "p", -1, "operator")],
)  # fmt: skip
def test_every_identity_is_read_back_from_its_uri(who: Identity) -> None:
    assert identity_from_uri(who.uri) == who


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=rf"TLS files in {tmp_path} cannot be used: No such file or directory"):
        TlsFiles(tmp_path).client_context()


def test_renewed_files_are_used_for_the_next_connection(tmp_path: Path) -> None:
    ca = new_ca("default", "p")
    write_tls_dir(tmp_path, ca, issue(ca, identity(0)))
    files = TlsFiles(tmp_path)
    first = files.client_context()
    assert files.client_context() is first
    write_tls_dir(tmp_path, ca, issue(ca, identity(0)))
    assert files.client_context() is not first


def test_a_half_renewed_directory_keeps_the_certificate_in_use(tmp_path: Path) -> None:
    ca = new_ca("default", "p")
    write_tls_dir(tmp_path, ca, issue(ca, identity(0)))
    files = TlsFiles(tmp_path)
    first = files.server_context()
    (tmp_path / "tls.key").write_bytes(issue(ca, identity(0)).key)
    assert files.server_context() is first


def test_keys_are_private_and_certificates_live_as_planned(tmp_path: Path) -> None:
    ca = new_ca("default", "p", now=NOW)
    leaf = issue(ca, identity(1), now=NOW)
    write_tls_dir(tmp_path / "tls", ca, leaf)
    assert (tmp_path / "tls" / "tls.key").stat().st_mode & 0o777 == 0o600
    assert ca.key not in b"".join(path.read_bytes() for path in (tmp_path / "tls").iterdir())
    begin, end = leaf.x509.not_valid_before_utc, leaf.x509.not_valid_after_utc
    assert (NOW - begin).total_seconds() == pytest.approx(3600, abs=1)
    assert (end - begin).days == 90
    assert (leaf.renew_at() - begin).days == 60
    assert (ca.x509.not_valid_after_utc - ca.x509.not_valid_before_utc).days == 3650
    assert "PRIVATE" not in repr(leaf)


def _connect(stage: StageCommunicator) -> socket.socket:
    host, port = stage.address.split(":")
    return socket.create_connection((host, int(port)), 2.0)


def _dial(stage: StageCommunicator, files: TlsFiles) -> None:
    ring = Ring(identity(0), PLAN)
    hello = new_hello(PLAN, identity(0), Epoch(1, b"abcdefgh")).with_entry(
        own_entry(ring, kv_id=b"k" * 8, seen=Epoch(0, bytes(8)))
    )
    dial(TlsTransport(files), stage.address, ring, hello, FAST).close(0)


def test_an_end_model_whose_certificate_expired_is_told_so(stage: StageCommunicator, pki: Pki, tmp_path: Path) -> None:
    write_tls_dir(tmp_path, pki.ca, issue(pki.ca, identity(0), now=NOW - datetime.timedelta(days=91)))
    end = EndModelCommunicator(identity(0), PLAN, TlsFiles(tmp_path), "127.0.0.1:0", stage.address, timing=FAST)
    with closing(end), pytest.raises(RingDown) as raised:
        end.connect()
    assert raised.value.reason == "end-model: link to stage 1 (s1) broke: TLS: sslv3 alert certificate expired"
