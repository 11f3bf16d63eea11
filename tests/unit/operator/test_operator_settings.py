"""What the operator reads of its environment, and what it says to wrong variables."""

from __future__ import annotations

import pytest
from languagepipes_operator.certificates.authority import new_ca
from languagepipes_operator.settings import OperatorSettings, SettingsError

ENDPOINT = "LANGUAGEPIPES_OPERATOR_HUB_ENDPOINT"
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


def endpoint(text: str) -> str:
    return OperatorSettings.from_environment({"LANGUAGEPIPES_OPERATOR_NODE_IMAGE": "node", ENDPOINT: text}).hub_endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://hub.example",
        "http://hub.models.svc:8080",
        "https://hub.example:65535/mirror/",
        "https://[2001:db8::1]:8443/x",
    ],
)
def test_an_address_of_a_mirror_is_taken_as_it_is(text: str) -> None:
    assert endpoint(text) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("https://hub.example:99999", "Port out of range"),
        ("https://hub.example:0", "Port out of range"),
        ("https://hub.example:8x", "Port could not be cast"),
        ("https://[2001:db8::1/x", "Invalid IPv6 URL"),
        ("https://[hub]/x", "does not appear to be an IPv4 or IPv6 address"),
        ("https://hub\u2100.example", "NFKC"),
        ("https://:443", "not http:// or https:// and a host"),
        ("https:///x", "not http:// or https:// and a host"),
        ("hub.example", "not http:// or https:// and a host"),
        ("ftp://hub.example", "not http:// or https:// and a host"),
        ("https://hub.example/a b", "not http:// or https:// and a host"),
    ],
)
def test_an_address_that_is_none_is_refused_with_the_reason_and_the_remedy(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        endpoint(text)

    said = str(caught.value)
    assert said.startswith(f"{ENDPOINT}: {text!r} is no address of a mirror (")
    assert problem in said
    assert said.endswith(
        "): write it as https://hub.example or https://hub.example:8443/path, or leave it empty for the Hub"
    )


PROXY = "LANGUAGEPIPES_OPERATOR_HUB_PROXY"


def proxy(text: str) -> str:
    return OperatorSettings.from_environment({"LANGUAGEPIPES_OPERATOR_NODE_IMAGE": "node", PROXY: text}).hub_proxy


@pytest.mark.parametrize(
    "text", ["", "http://proxy.example:3128", "https://proxy.example", "http://[2001:db8::1]:8080"]
)
def test_an_address_of_a_proxy_is_taken_as_it_is(text: str) -> None:
    assert proxy(text) == text


def test_a_proxy_that_is_none_is_refused_and_no_password_is_quoted() -> None:
    with pytest.raises(SettingsError, match=r"'proxy:3128' is no address of a proxy .*http://proxy.example:3128"):
        proxy("proxy:3128")
    with pytest.raises(SettingsError) as caught:
        proxy("http://user:word@proxy:3128")

    assert "spec.store.template.env" in str(caught.value)
    assert "word@" not in str(caught.value)
