"""A program the examples need is found, installed, or named in one sentence."""

import os
from collections.abc import Sequence

import pytest

from deploy.local import StackProblem
from tests.programs import programs


def test_what_is_on_the_path_is_not_installed() -> None:
    def install(packages: Sequence[str]) -> None:
        raise AssertionError(packages)

    assert programs("node", "npm", find=lambda name: f"/bin/{name}", install=install) == ["/bin/node", "/bin/npm"]


def test_what_is_missing_is_installed() -> None:
    present = {"npm": "/bin/npm"}

    def install(packages: Sequence[str]) -> None:
        assert packages == ["nodejs"]
        present["node"] = "/bin/node"

    assert programs("node", "npm", find=present.get, install=install) == ["/bin/node", "/bin/npm"]


def test_without_the_means_to_install_it_a_sentence_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StackProblem, match="node and npm not found on PATH: install nodejs and npm with your system's"):
        programs("node", "npm", find=lambda _: None)


def test_what_is_missing_after_the_installation_is_named() -> None:
    with pytest.raises(StackProblem, match="curl was installed and is not on PATH"):
        programs("curl", find=lambda _: None, install=lambda _: None)
