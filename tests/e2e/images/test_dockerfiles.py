"""What can be seen of the images without building them."""

from __future__ import annotations

import re
from pathlib import PurePath

import pytest
from support.paths import ROOT

DOCKERFILES = [*ROOT.glob("Dockerfile.*"), *ROOT.glob("tests/e2e/images/Dockerfile.*")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_installs_with_the_pinned_uv(dockerfile):
    pinned = re.search(r"^uv==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert set(re.findall(r"^ARG UV_VERSION=(\S+)$", dockerfile.read_text(), re.MULTILINE)) <= {pinned[1]}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_names_no_address_and_ends_as_an_unprivileged_user(dockerfile):
    text = dockerfile.read_text()

    assert not re.search(r"^\s*[^#\s].*https?://", text, re.MULTILINE)
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["65532:65532"]


def test_the_build_context_is_what_the_images_are_made_of_and_nothing_else():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        str(PurePath(source).parent) if "/" in source else source
        for dockerfile in DOCKERFILES
        for line in re.findall(r"^COPY (?!--)(.+)$", dockerfile.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }

    assert allowed == copied
