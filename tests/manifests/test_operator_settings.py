"""What the operator reads of its environment, and what it says to wrong variables."""

from __future__ import annotations

import pytest
from languagepipes_operator.certificates import new_ca
from languagepipes_operator.cluster.settings import OperatorSettings, SettingsError

BUNDLE = "LANGUAGEPIPES_OPERATOR_HUB_CA_BUNDLE"
ONE, TWO = (new_ca("hub", name) for name in ("one", "two"))
BROKEN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def bundle(text: str) -> str:
    return OperatorSettings.from_environment({"LANGUAGEPIPES_OPERATOR_NODE_IMAGE": "node", BUNDLE: text}).hub_ca_bundle


def test_of_a_bundle_the_certificates_count_and_not_the_words_around_them() -> None:
    one, two = ONE.certificate.decode(), TWO.certificate.decode()

    assert bundle(one) == bundle(f"\n# Ours, since März\r\n{one}\n") == one
    assert bundle(f"{one}\n\n{two}") == one + two
    assert bundle(" \n") == bundle("") == ""


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("/etc/ssl/ca.crt", "'/etc/ssl/ca.crt…'"),
        (ONE.certificate.decode()[:200], "'-----BEGIN CERTIFICATE-----"),
        (ONE.certificate.decode() + BROKEN, "'-----BEGIN CERTIFICATE-----"),
    ],
)
def test_a_bundle_that_is_none_is_refused_with_its_beginning_and_the_remedy(text: str, quoted: str) -> None:
    with pytest.raises(SettingsError) as caught:
        bundle(text)

    said = str(caught.value)
    assert said.startswith(f"{BUNDLE}: {quoted}")
    assert "is not the PEM text of certificates: take those of the mirror's authorities" in said
    assert len(said) < 300


def test_a_private_key_is_refused_and_not_quoted() -> None:
    key = ONE.key.decode()
    with pytest.raises(SettingsError) as caught:
        bundle(key + ONE.certificate.decode())

    assert str(caught.value) == (
        f"{BUNDLE}: it holds a private key, and pods would read it: leave it out, take the certificates alone"
    )
