"""Renewal as a pod sees it: a kubelet turns `..data` over under running members."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from languagepipes_api.names import Identity
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_operator.certificates.authority import KeyPair, issue, new_ca
from support.wire_ring import build_ring, identity, make_plan, one_token


@dataclass
class SecretVolume:
    """A directory as a kubelet keeps it for a Secret: files are links through ..data, the old target is deleted."""

    directory: Path
    turns: int = 0

    def write(self, leaf: KeyPair, bundle: bytes) -> None:
        self.turns += 1
        target = self.directory / f"..{self.turns}"
        target.mkdir(parents=True)
        files = {"ca.crt": bundle, "tls.crt": leaf.certificate, "tls.key": leaf.key}
        for name, content in files.items():
            (target / name).write_bytes(content)
        (self.directory / "..data_tmp").symlink_to(target.name)
        os.replace(self.directory / "..data_tmp", self.directory / "..data")
        if self.turns == 1:
            for name in files:
                (self.directory / name).symlink_to(f"..data/{name}")
        else:
            shutil.rmtree(self.directory / f"..{self.turns - 1}")


def test_files_of_two_renewals_are_never_mixed(tmp_path: Path) -> None:
    volume, who = SecretVolume(tmp_path / "tls"), identity(1)
    pairs = []
    for days in range(20, 60):
        ca = new_ca("default", "p")
        leaf = issue(ca, who, lifetime=timedelta(days=days))  # so that each leaf is known by its end
        pairs.append((leaf, ca.certificate))
    known = {hashlib.sha256(bundle).hexdigest(): leaf.x509.not_valid_after_utc.timestamp() for leaf, bundle in pairs}
    assert len(known) == 40
    volume.write(*pairs[0])
    files, done = TlsFiles(volume.directory), threading.Event()
    files.report()  # what is kept wherever later files are replaced while they are read
    mixed: list[str] = []
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            files.server_context()
            report = files.report()
            seen.add(report.bundle)
            if report.leaf_not_after != known[report.bundle]:
                mixed.append(report.bundle)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 60
    while len(seen) < 20 and time.monotonic() < deadline:
        for leaf, bundle in pairs:
            volume.write(leaf, bundle)
            time.sleep(random.uniform(0, 0.02))  # about as long as they take to read, so that each can come in between
    done.set()
    reader.join()
    assert len(seen) >= 20
    assert not mixed
    last = files.report()
    assert last.bundle == hashlib.sha256(pairs[-1][1]).hexdigest()


def test_a_ring_lives_through_a_rotation_of_the_ca_and_can_be_joined_at_every_step(tmp_path: Path) -> None:
    plan = make_plan(stages=2)
    old, new = new_ca("default", "p"), new_ca("default", "p")
    volumes = [SecretVolume(tmp_path / str(index)) for index in range(3)]

    def give(index: int, ca: KeyPair, bundle: bytes) -> None:
        volumes[index].write(issue(ca, identity(index)), bundle)

    both, turned = old.certificate + new.certificate, new.certificate + old.certificate
    for index in range(3):
        give(index, old, old.certificate)
    with ExitStack() as stack:
        files = [TlsFiles(volume.directory) for volume in volumes]
        ring = build_ring(plan, lambda index: TlsTransport(files[index]), stack)
        info = ring.end.connect()
        step = 0
        for ca, bundle in ((old, both), (new, turned), (new, new.certificate)):
            for index in (1, 0, 2):
                give(index, ca, bundle)
                step += 1
                ring.end.send(step, one_token(), np.zeros((1, 8), dtype=np.float32), 1)
                returned = ring.end.receive(2.0)
                assert returned is not None
                returned.release()
                assert ring.end.state.epoch == info.epoch  # the link goes on with what it was made with
            info = ring.end.connect()  # and all new ones use the new files
            assert {each.report().bundle for each in files} == {hashlib.sha256(bundle).hexdigest()}


def test_new_links_can_be_made_while_some_members_have_the_new_files_and_some_the_old(tmp_path: Path) -> None:
    plan = make_plan(stages=2)
    old, new = new_ca("default", "p"), new_ca("default", "p")
    volumes = [SecretVolume(tmp_path / str(index)) for index in range(3)]
    bundles = (
        (old, old.certificate),
        (old, old.certificate + new.certificate),
        (new, new.certificate + old.certificate),
        (new, new.certificate),
    )
    for index, volume in enumerate(volumes):
        volume.write(issue(old, identity(index)), old.certificate)
    with ExitStack() as stack:
        files = [TlsFiles(volume.directory) for volume in volumes]
        ring = build_ring(plan, lambda index: TlsTransport(files[index]), stack)
        ring.end.connect()
        for ca, bundle in bundles[1:]:
            for index, volume in enumerate(volumes):
                volume.write(issue(ca, identity(index)), bundle)
                ring.end.connect()


def test_the_report_says_what_the_next_connection_uses(tmp_path: Path) -> None:
    volume = SecretVolume(tmp_path / "tls")
    ca = new_ca("default", "p")
    leaf = issue(ca, Identity("default", "p", -1, "store"))
    volume.write(leaf, ca.certificate)
    files = TlsFiles(volume.directory)
    assert files.report().bundle == hashlib.sha256(ca.certificate).hexdigest()
    assert files.report().leaf_not_after == leaf.x509.not_valid_after_utc.timestamp()
    volume.write(KeyPair(leaf.certificate, b"broken"), b"broken")
    assert files.report().bundle == hashlib.sha256(ca.certificate).hexdigest()  # what it can still use


@pytest.mark.parametrize("year", [2030, 2049, 2050, 2075])
def test_the_end_of_a_certificate_is_read_in_both_of_its_forms(tmp_path: Path, year: int) -> None:
    ca = new_ca("default", "p", lifetime=timedelta(days=100 * 365))
    now = datetime.now(UTC)
    leaf = issue(ca, identity(1), lifetime=datetime(year, 6, 1, tzinfo=UTC) - now)
    volume = SecretVolume(tmp_path / "tls")
    volume.write(leaf, ca.certificate)
    assert TlsFiles(volume.directory).report().leaf_not_after == leaf.x509.not_valid_after_utc.timestamp()
