"""What pyproject.toml asks for: bounds where a new major would break a wheel, and what runs these tests."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}
BOUNDED = {"accelerate", "hydra-core", "msgspec", "numpy", "peft", "pyzmq", "rich", "safetensors", "torch"}
BOUNDED |= {"transformers", "typer"}


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_a_new_major_is_not_taken_unseen(name):
    """The release after the newest that is allowed is refused, whatever it is called."""
    assert not NEEDED[name].specifier.contains("1000"), f"{name} has no upper bound"


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_there_is_a_lower_bound_and_the_tests_run_within(name):
    specifier = NEEDED[name].specifier
    assert not specifier.contains("0.0.1"), f"{name} has no lower bound"
    assert specifier.contains(version(name), prereleases=True), f"{name} {version(name)} is beyond what is declared"
