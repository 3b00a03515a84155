"""Who has set something that has no effect beside other settings is told so; who has not hears nothing."""

from __future__ import annotations

import pytest
import yaml

from tsugi_cli.config import idle, schema
from tsugi_cli.config.compose import build_spec, compose, recipes, to_tree
from tsugi_cli.config.spec import RunSpec

JOINABLE = ["topology.here=1", "sideband.bind=10.0.0.7"]
"""Over an exchange: replicas join from other machines, whose network nobody trusts."""
CASES = {
    "kpool.round_quorum=0.8": ([], JOINABLE),
    "kpool.round_grace_s=auto": ([], JOINABLE),
    "kpool.reduce=gather": (JOINABLE, []),
    "kpool.max_staleness=30": ([], ["kpool.mode=gradient"]),
    "kpool.eps=2": (["kpool.trigger=count"], []),
    "kpool.error_feedback=false": (["kpool.payload=fp32"], []),
    "kpool.routing=loss_aware": (["kpool.k=8"], []),
    "topology.inside=fsdp2": ([], ["topology.workers=2", "train.micro_batch=2"]),
    "topology.ssh=ssh -p 22": ([], ["topology.hosts=[b]"]),
    "topology.remote_tsugi=/opt/tsugi": ([], ["topology.hosts=[b]"]),
    "topology.start_timeout_s=60": (JOINABLE, []),
    "topology.join_timeout_s=60": ([], JOINABLE),
    "sideband.metrics_bind=127.0.0.2": ([], ["sideband.metrics_port=9100"]),
    "fault.jitter=0.5": ([], ['fault.step_s=["0:0.1"]']),
}
"""A setting -> what else makes it idle, and what makes it count."""


@pytest.fixture(scope="module")
def usual() -> RunSpec:
    return compose(["model=tiny"])


def with_settings(usual: RunSpec, *written: str) -> RunSpec:
    """The same run with these settings: composed once, because that takes a fifth of a second."""
    tree = to_tree(usual)
    for each in written:
        key, _, value = each.partition("=")
        section, _, name = key.partition(".")
        tree[section][name] = yaml.safe_load(value)
    return build_spec(tree)


@pytest.mark.parametrize("written", CASES)
def test_a_setting_without_effect_is_told_where_it_has_none_and_only_there(usual, written):
    (idles, counts), key = CASES[written], written.partition("=")[0]
    (note,) = [each for each in idle.notes(with_settings(usual, written, *idles)) if each.startswith(key)]
    assert note.startswith(f"{written} has no effect here: ")
    assert idle.notes(with_settings(usual, written, *counts)) == []
    assert idle.notes(with_settings(usual, *idles)) == [], "nobody has set it"


def test_every_such_setting_has_its_case_and_is_one():
    keys = [key for each in idle.IDLE for key in each.keys]
    assert keys == [written.partition("=")[0] for written in CASES]
    assert set(keys) <= set(schema.leaf_types())


@pytest.mark.parametrize("recipe", recipes())
def test_no_shipped_recipe_sets_what_has_no_effect(recipe, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    assert idle.notes(compose([f"recipe={recipe}", "model=tiny", f"data={file}"])) == []
