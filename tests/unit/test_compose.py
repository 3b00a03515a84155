"""The configuration path: what a user types becomes a RunSpec, or a list of all mistakes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsugi_cli.config import compose as compose_module
from tsugi_cli.config import overrides, schema
from tsugi_cli.config.compose import build_spec, compose, config_hash, recipes, resolved_yaml, to_tree
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.settings import WITHDRAWN, Mode, Payload, Routing, Trigger
from tsugi_kpool.errors import ConfigError, ExitCode, LaunchError

BASE = ("model=tiny",)
GGUF = {"model__source": "gguf_package", "model__package": "a==1", "model__file": "a/b.gguf"}
OPTIONS = [(group, option) for group, options in overrides.group_options().items() for option in options]
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mistakes(*tokens: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(tokens)
    assert caught.value.exit_code is ExitCode.CONFIG
    return caught.value.problems


def mistake(*tokens: str) -> str:
    (only,) = mistakes(*tokens)
    return only


def refusal(token: str) -> str:
    """The one problem that reading a token finds, before Hydra is asked."""
    (only,) = overrides.read([token]).problems
    return only


def changed(spec: RunSpec, **values: object) -> RunSpec:
    """Build the spec again with other values; `kpool__k` stands for kpool.k."""
    tree = to_tree(spec)
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (tree[section] if section else tree)[name] = value
    return build_spec(tree)


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return compose(BASE)


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """Work in a directory that holds a data file."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    return path


# What ships


def test_without_tokens_the_default_recipe_is_composed():
    assert compose(()) == compose(["recipe=smollm2_tools"])
    assert compose(()).name == "smollm2_tools"


def test_every_conf_option_is_known():
    shipped = {(path.parent.name, path.stem) for path in overrides.conf_dir().glob("*/*.yaml")}
    assert shipped == set(OPTIONS)
    assert {group for group, _ in OPTIONS} == {
        "model",
        "data",
        "topology",
        "lora",
        "kpool",
        "train",
        "evaluate",
        "sideband",
    }


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_conf_option_composes(group, option, samples, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # what topology=hosts asks a scheduler for
    monkeypatch.setenv("WORLD_SIZE", "2")
    packed = samples.with_name("some.gguf")
    packed.write_bytes(b"GGUF")
    needs = {
        ("model", "hf"): ["model.path=org/name"],
        ("model", "gguf"): [f"model.path={packed}"],
        ("data", "jsonl"): [f"data.path={samples}"],
    }
    built = compose([f"{group}={option}", *needs.get((group, option), [])])
    shipped = yaml.safe_load((overrides.conf_dir() / group / f"{option}.yaml").read_text())
    for base in shipped.pop("defaults", []):  # what it takes over from another option
        shipped |= yaml.safe_load((overrides.conf_dir() / group / f"{base}.yaml").read_text())
    assert set(shipped) == {field.name for field in dataclasses.fields(getattr(built, group))}


@pytest.mark.parametrize("name", overrides.recipe_names())
def test_every_recipe_composes_under_its_own_name(name, samples):
    recipe = yaml.safe_load((overrides.recipes_dir() / f"{name}.yaml").read_text())
    own_file = [f"data.path={samples}"] if {"override data": "jsonl"} in recipe["defaults"] else []
    quantized = recipe.get("model", {}).get("quantize", "none") != "none"
    elsewhere = ["topology.here=0"] if quantized else []  # its package is looked for where replicas start
    network = ["sideband.bind=127.0.0.1"] if recipe.get("topology", {}).get("here") else []
    assert compose([f"recipe={name}", *own_file, *elsewhere, *network]).name == name


def test_recipes_come_with_a_first_sentence():
    found = recipes()
    assert set(found) == {path.stem for path in overrides.recipes_dir().glob("*.yaml")}
    assert found["smollm2_tools"].endswith("one JSON tool call.")


def test_values_have_the_types_of_the_dataclasses(spec):
    assert spec.kpool.mode is Mode.LOCAL
    assert spec.kpool.payload is Payload.INT8
    assert (spec.lora.alpha, spec.kpool.eps) == (32.0, "auto")
    assert isinstance(spec.lora.alpha, float)
    assert spec.model.source == "tiny"


def test_import_alone_loads_no_hydra():
    code = "import sys, tsugi_cli.config.compose; sys.exit('hydra' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_works_from_any_directory_and_leaves_hydra_clean(tmp_path, monkeypatch, spec):
    from hydra.core.global_hydra import GlobalHydra

    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tiny.yaml").write_text("source: wrong\n")
    (tmp_path / "config.yaml").write_text("name: wrong\n")
    monkeypatch.chdir(tmp_path)
    assert compose(BASE) == spec
    assert not GlobalHydra.instance().is_initialized()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "config.yaml"]


# Recipes


def test_unknown_recipe_lists_what_exists_and_the_nearest():
    text = mistake("recipe=smollm_tools")
    assert text.startswith("recipe=smollm_tools: no such recipe; did you mean smollm2_tools? (")
    assert f"({', '.join(overrides.recipe_names())}, or a path" in text


def test_unknown_recipe_does_not_hide_other_mistakes():
    assert len(mistakes("recipe=zzz", "kpool.K=1", "train.lr=x")) == 3


@pytest.mark.parametrize("file", ["mine.yaml", "sub/my recipe (1).yml", "config.yaml", "smollm2_tools.yaml"])
def test_own_recipe_file(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("defaults: [config, override model: tiny, _self_]\nname: mine\nkpool: {k: 3}\n")
    for given_as in (file, str(path)):
        built = compose([f"recipe={given_as}", "lora.rank=32"])
        assert (built.name, built.model.source, built.kpool.k, built.lora.rank) == ("mine", "tiny", 3, 32)


def test_own_recipe_may_build_on_a_shipped_one_and_interpolate(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [smollm2_docstrings, _self_]\nname: mine\nruns_dir: out/${name}\n")
    built = compose([f"recipe={path}", *BASE])
    assert (built.data.scorer, built.runs_dir) == (None, "out/mine")


def test_own_recipe_without_defaults_changes_the_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("kpool: {k: 3}\n")
    assert compose([f"recipe={path}"]).kpool.k == 3


def test_a_group_on_the_command_line_wins_against_a_runs_own_config(tmp_path):
    """All values of every group stand in a config.yaml; what was chosen is trained, not what stands there."""
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(compose(["model=tiny", "data.n_eval=5", "kpool.k=3"])))
    chosen = compose([f"recipe={path}", "model=smollm2_135m", "data=docstrings"])
    docstrings = dataclasses.replace(
        compose(["recipe=smollm2_docstrings"]).data, group_by_length=chosen.train.micro_batch
    )
    assert (chosen.model, chosen.data) == (compose([]).model, docstrings)
    assert chosen.kpool.k == 3, "the rest is the run's"
    own = tmp_path / "own.jsonl"
    own.write_text("")
    (tmp_path / "config.json").write_text("{}")
    read = compose([f"recipe={path}", f"model={tmp_path}", f"data={own}"])
    assert (read.model.source, read.model.path, read.model.package) == ("hf", str(tmp_path), None)
    assert (read.data.path, read.data.builder, read.data.scorer) == (str(own), None, None)
    assert read.data.n_eval == 5, "a file is what is read, not how"
    whole = tmp_path / "mine.yaml"
    whole.write_text("defaults: [config, _self_]\nmodel: {source: hf, path: a/b}\n")
    assert compose([f"recipe={whole}", "model=tiny"]).model.source == "tiny"


def test_a_group_on_the_command_line_wins_against_a_recipe_that_the_own_one_builds_on(tmp_path, samples):
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [llama3_8b_lora, _self_]\nname: mine\ntrain: {lr: 1.0e-3}\n")
    chosen = compose([f"recipe={path}", "model=tiny", f"data={samples}"])
    assert chosen.model == compose(["model=tiny"]).model
    assert (chosen.data.path, chosen.data.n_train) == (str(samples), 50000), "a file is what is read, not how"
    assert (chosen.name, chosen.train.lr, chosen.lora.rank) == ("mine", 1e-3, 128), "the rest is the recipes'"
    assert compose([f"recipe={path}", f"data={samples}"]).model.path == "meta-llama/Meta-Llama-3-8B"


def test_resolved_yaml_is_a_recipe(tmp_path):
    original = compose([*BASE, "fault.slow=1:4.0", "about=5e51234", "kpool.k=4", "data.seed=3"])
    path = tmp_path / "config.resolved.yaml"
    path.write_text(resolved_yaml(original))
    assert compose([f"recipe={path}"]) == original


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kpool: {K: 3}", "kpool.K: no such key; did you mean kpool.k?"),
        ("kpool: 3", "kpool"),
        ("name: 12", "name: expected str, found 12; put it in quotes"),
        ("fault: {slow: [1:4.0]}", "fault.slow: expected a list of str, found [64.0]; in YAML, put quotes"),
        ("name: ${nope}", "name: Interpolation key 'nope' not found"),
        ("a: [", "mine.yaml: line 1: "),
        ("- 1", "expected keys with values"),
        ("k: 1\nk: 2", "duplicate key"),
        ("defaults: 3", "defaults must be a list"),
        ("defaults: [config, override model: tyni]", "model=tyni: no such model; did you mean tiny?"),
        ("defaults: [nothing]", "Could not load 'nothing'"),
        ("defaults: [override model: tiny]", "model"),
        ("defaults: [config, _self_, _self_]", "Duplicate _self_"),
        ("defaults: []", "kpool is missing: give the section kpool"),
        ("hydra: {run: {dir: x}}", "hydra"),
    ],
)
def test_mistakes_in_an_own_recipe_are_told_without_a_traceback(content, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    problems = mistakes(f"recipe={path}")
    assert any(said in text for text in problems), problems
    assert not any("tsugi_own_recipe" in text for text in problems)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("min.yaml", "recipe=min.yaml: no such file; did you mean mine.yaml?"),
        ("smollm2_tools.yaml", "did you mean recipe=smollm2_tools?"),
        ("notes.txt", "a recipe is a .yaml file"),
        ("no/such/dir.yaml", "no such file"),
        ("", "no such recipe"),
    ],
)
def test_wrong_recipe_paths(recipe, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine")
    (tmp_path / "notes.txt").write_text("")
    assert said in mistake(f"recipe={recipe}")


# Groups


def test_unknown_option_names_the_nearest_and_all():
    assert mistake("data=tols") == "data=tols: no such data; did you mean tools? (docstrings, jsonl, tools)"
    assert "there are docstrings, jsonl, tools" in mistake("data=null")


def test_unknown_model_mentions_hub_ids():
    assert "model=hf model.path=gpt2" in mistake("model=gpt2")


def test_model_with_a_slash_or_a_directory_is_read_by_hf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    for given_as in ("meta-llama/Llama-3-8B", "checkpoint", "./checkpoint", str(tmp_path / "checkpoint")):
        built = compose([f"model={given_as}"])
        assert (built.model.source, built.model.path) == ("hf", given_as)


def test_model_path_that_is_clearly_local_must_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert mistake("model=./checkpiont") == ("model.path: no such directory: ./checkpiont; did you mean checkpoint?")


def test_data_file_is_read_by_jsonl(samples):
    for given_as in ("train.jsonl", "./train.jsonl", str(samples)):
        built = compose([*BASE, f"data={given_as}"])
        assert (built.data.builder, built.data.path) == (None, given_as)
    assert compose([*BASE, "data=jsonl", "data.path=train.jsonl"]) == compose([*BASE, "data=train.jsonl"])


def test_two_different_paths_contradict_each_other():
    assert "give one of them" in mistake("model=org/name", "model.path=org/other")


def test_last_of_equal_keys_wins():
    built = compose(["model=org/name", "model=tiny", "kpool.k=7", "kpool.k=3", "recipe=zzz", "recipe=smollm2_tools"])
    assert (built.model.source, built.model.path, built.kpool.k) == ("tiny", None, 3)


# Keys


@pytest.mark.parametrize(
    ("token", "meant"),
    [
        ("kpool.K=2", "kpool.k"),
        ("+kpool.K=2", "kpool.k"),
        ("++kpool.K=2", "kpool.k"),
        ("kpol.k=2", "kpool.k"),
        ("kpool.k.x=2", "kpool.k"),
        ("lr=1e-3", "train.lr"),
        ("optim.lr=1e-3", "train.lr"),
        ("train.max_step=3", "train.max_steps"),
        ("path=x", "model.path or data.path"),
        ("modle=tiny", "model"),
        ("recipes=x", "recipe"),
    ],
)
def test_unknown_key_names_the_nearest(token, meant):
    key = token.lstrip("+").partition("=")[0]
    assert refusal(token) == f"{key}: no such key; did you mean {meant}?"


@pytest.mark.parametrize("token", ["+newkey=1", "++kpool.zzz=1", "hydra.run.dir=x", "hydra/launcher=x", "model@a=x"])
def test_nothing_can_be_added(token):
    assert "no such key" in refusal(token)


def test_unknown_key_with_nothing_near_lists_the_section():
    listed = "sideband.zzz: no such key; sideband has bind, port, beat_s, hub_timeout_s"
    assert refusal("sideband.zzz=1").startswith(listed)


def test_a_plus_before_a_known_key_is_harmless():
    assert compose([*BASE, "+kpool.k=3"]) == compose([*BASE, "++kpool.k=3"]) == compose([*BASE, "kpool.k=3"])


@pytest.mark.parametrize("token", ["~kpool", "~kpool.k", "~kpool.k=2", "~data"])
def test_nothing_can_be_removed(token):
    assert "nothing can be removed" in refusal(token)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("foo", "foo: not key=value; write for example kpool.k=2"),
        ("tiny", "tiny: not key=value; did you mean model=tiny?"),
        ("smollm2_docstrings", "did you mean recipe=smollm2_docstrings?"),
        ("kpool.k", "write kpool.k=VALUE"),
        ("--multirun", "not key=value"),
        ("--kpool.k=2", "--kpool.k=2: write kpool.k=2"),
        ("=", "not key=value"),
        ("", "not key=value"),
        ("fault=1", "fault: set one of its keys, such as fault.slow=..."),
    ],
)
def test_tokens_that_are_no_setting(token, said):
    assert said in refusal(token)


# Values


AWKWARD = [
    "~/x (1).jsonl", "a#b", "s3://bucket/a?x=1&y=[2]", "5e51234", "Ärger.jsonl", "it's", 'say "hi"', "end\\",
    "end\\\\", "\\'", "'", "a,b", "[1]", "{a: 1}", "${name}", "\\${name}", "${", "1:40", "true", "12",
    " padded ", "", "a=b", "\udcff", "\x85",
]  # fmt: skip
TEXT_KEYS = ("about", "runs_dir", "data.subset", "model.package", "model.file")


def assert_verbatim(texts: list[str]) -> None:
    """Give each text to a key that takes any text; look at what arrives, and what a worker reads."""
    given_as = dict(zip(TEXT_KEYS, texts, strict=False))
    built = compose([*BASE, *(f"{key}={text}" for key, text in given_as.items())])
    arrived = {"about": built.about, "runs_dir": built.runs_dir, "data.subset": built.data.subset}
    arrived |= {f"model.{name}": getattr(built.model, name) for name in ("package", "file")}
    assert {key: arrived[key] for key in given_as} == given_as
    assert build_spec(yaml.safe_load(resolved_yaml(built))) == built


@pytest.mark.parametrize("start", range(0, len(AWKWARD), 4))
def test_text_survives_verbatim(start):
    assert_verbatim([*AWKWARD[start : start + 1], "runs", *AWKWARD[start + 1 : start + 4]])


# "???" is OmegaConf's word for "missing", and null takes a value away; both stay so.
@few
@given(
    st.lists(
        st.text(
            st.one_of(st.sampled_from("\\'\"${}[](),:=#~ \n"), st.characters(exclude_characters="\0")),
            min_size=1,
            max_size=20,
        ).filter(lambda text: text not in ("???", "null")),
        min_size=5,
        max_size=5,
    )
)
def test_any_text_survives_verbatim(texts):
    assert_verbatim(texts)


def test_awkward_file_names_reach_the_check_for_existence(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x (1), it's #2.jsonl").write_text("{}\n")
    built = compose([*BASE, "data=~/x (1), it's #2.jsonl"])
    assert built.data.path == "~/x (1), it's #2.jsonl"


def test_data_may_be_several_files_folders_patterns_and_hub_names(samples, monkeypatch):
    monkeypatch.chdir(samples.parent)
    (samples.parent / "more").mkdir()
    (samples.parent / "more" / "b.csv.gz").touch()
    for word, path, name in (
        ("train.jsonl", "train.jsonl", "train"),
        ("train.jsonl,more/b.csv.gz", ["train.jsonl", "more/b.csv.gz"], "train"),
        ("[more/b.csv.gz]", ["more/b.csv.gz"], "b"),
        ("more", "more", "more"),
        ("*.jsonl", "*.jsonl", "own_data"),
        ("HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrachat_200k", "ultrachat_200k"),
    ):
        built = compose(["model=tiny", f"data={word}"])
        assert (built.data.path, built.name) == (path, name)


def test_a_data_file_with_a_typo_is_answered_with_the_nearest(samples, monkeypatch):
    monkeypatch.chdir(samples.parent)
    assert mistake(*BASE, "data=train.jsnl") == "data=train.jsnl: no such file; did you mean train.jsonl?"


def test_own_data_takes_neither_the_name_nor_the_rates_of_a_demo(samples):
    demo, own = compose(["model=tiny"]), compose(["model=tiny", f"data={samples}"])
    assert own.name == samples.stem
    assert (own.train.lr, own.train.optimizer) == (2e-4, "auto")
    assert own.kpool.min_steps != demo.kpool.min_steps
    named = compose(["recipe=smollm2_tools", f"data={samples}", "name=mine", "train.lr=1e-3"])
    assert (named.name, named.train.lr) == ("mine", 1e-3)


@pytest.mark.parametrize(
    ("modules", "named", "slow", "listed"),
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"], "[1:4.0]", ["1:4.0"]),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"], "1:4.0", ["1:4.0"]),
        ("['q_proj',\"v_proj\"]", ["q_proj", "v_proj"], '["0:2", "1:40"]', ["0:2", "1:40"]),
        ("q_proj", ["q_proj"], "0:2,1:40", ["0:2", "1:40"]),
        ("all-linear", "all-linear", "[]", []),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj", "", []),
    ],
)
def test_lists_need_no_brackets_and_replicas_are_not_read_as_minutes(modules, named, slow, listed):
    built = compose([*BASE, f"lora.target_modules={modules}", f"fault.slow={slow}"])
    assert (built.lora.target_modules, built.fault.slow) == (named, listed)
    assert build_spec(yaml.safe_load(resolved_yaml(built))) == built


@pytest.mark.parametrize(
    "token", ["kpool.k=1,2", "kpool.routing=loss_aware,round_robin", "model=tiny,hf", "kpool.k=range(1,3)"]
)
def test_sweeps_are_refused(token):
    assert mistake(token) == f"{token}: one value at a time"


MALFORMED = {
    "kpool.k=abc": "kpool.k: expected int or auto, found 'abc'",
    "kpool.n=": "kpool.n: expected int, found ''",
    "lora.rank=1.5": "lora.rank: expected int, found 1.5",
    "kpool.count=true": "kpool.count: expected int, found true",
    "kpool.min_steps=null": "kpool.min_steps: expected int, found null",
    "kpool.max_steps=${kpool.n}": "kpool.max_steps: expected int, found '${kpool.n}'",
    "topology.replicas=two (2)": "topology.replicas: expected int, found 'two (2)'",
    "train.lr=nan": "train.lr: expected float, found nan",
    "train.epochs=1e999": "train.epochs: expected float, found inf",
    "train.max_steps=x": "train.max_steps: expected int or null, found 'x'",
    "kpool.error_feedback=1": "kpool.error_feedback: expected true or false, found 1",
    "kpool.routing=round_robbin": "kpool.routing: found 'round_robbin', allowed: round_robin, loss_aware; "
    "did you mean round_robin?",
    "kpool.payload=FP32": "kpool.payload: found 'FP32', allowed: fp32, bf16, int8, int4, int2; did you mean fp32?",
    "model.dtype=float17": (
        "model.dtype: found 'float17', allowed: auto, float32, bfloat16, float16; did you mean float16?"
    ),
    "kpool.eps=atuo": "kpool.eps: expected float or auto, found 'atuo'; did you mean auto?",
    "name=???": "name is missing: give name=...",
}


def test_malformed_values_are_all_reported():
    assert sorted(mistakes(*BASE, *MALFORMED)) == sorted(MALFORMED.values())


@pytest.mark.parametrize(("gone", "why"), WITHDRAWN["kpool.routing"].items())
def test_a_routing_that_has_gone_is_told_with_what_there_is_and_why(tmp_path, gone, why):
    told = f"kpool.routing: found '{gone}', allowed: round_robin, loss_aware; {gone} has gone: {why}"
    assert mistake(f"kpool.routing={gone}") == told
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"defaults: [smollm2_tools, _self_]\nkpool:\n  routing: {gone}\n")
    assert mistakes(f"recipe={recipe}") == [told]


def test_numbers():
    built = compose([*BASE, "kpool.eps=1e-3", "train.lr=1", "train.epochs=.5", "train.max_steps=7"])
    assert (built.kpool.eps, built.train.lr, built.train.epochs) == (0.001, 1.0, 0.5)
    assert isinstance(built.train.lr, float)
    assert built.train.max_steps == 7
    assert compose([*BASE, "train.max_steps=null"]).train.max_steps is None


def test_enums_and_booleans():
    built = compose([*BASE, "kpool.routing=loss_aware", "kpool.trigger=count", "kpool.error_feedback=False"])
    assert (built.kpool.routing, built.kpool.trigger) == (Routing.LOSS_AWARE, Trigger.COUNT)
    assert built.kpool.error_feedback is False


def test_missing_values_are_named():
    assert mistakes("model=hf", "data=jsonl") == [
        "model.path is missing: give model.path=...",
        "data.path is missing: give data.path=...",
    ]


# Rules


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kpool__k": 9}, "kpool.k must not exceed kpool.n, found k=9 with n=8"),
        ({"kpool__count": 20}, "kpool.count must lie in"),
        ({"kpool__eps": 0}, "kpool.eps must be positive"),
        ({"topology__min_replicas": 3}, "topology.min_replicas must not exceed topology.replicas"),
        (
            {"topology__silent_timeout_s": 1.0},
            "topology.silent_timeout_s must be at least three times",
        ),
        ({"topology__max_restarts": -1}, "topology.max_restarts must be at least 0"),
        ({"topology__quorum_timeout_s": -1}, "topology.quorum_timeout_s must be at least 0"),
        ({"topology__replicas": 0}, "topology.replicas must be at least 1, found 0"),
        ({"topology__min_replicas": 0}, "topology.min_replicas must be at least 1"),
        ({"topology__threads_per_worker": 0}, "topology.threads_per_worker must be at least 1"),
        ({"topology__start_timeout_s": 0}, "topology.start_timeout_s must be positive"),
        ({"train__micro_batch": 0}, "train.micro_batch must be at least 1"),
        ({"train__lr": 0}, "train.lr must be positive"),
        ({"train__epochs": 0}, "train.epochs must be positive"),
        ({"train__max_steps": 0}, "train.max_steps must be null or at least 1"),
        ({"train__warmup": 1.5}, "train.warmup must be a share of the run in [0, 1), or a whole number"),
        ({"train__final_lr": 1.1}, "train.final_lr must lie in [0, 1]"),
        ({"train__grad_clip": -1}, "train.grad_clip must be at least 0"),
        ({"train__weight_decay": -1}, "train.weight_decay must be at least 0"),
        ({"train__beta2": 1.0}, "train.beta2 must lie in [0, 1)"),
        ({"train__lease_steps": 0}, "train.lease_steps must be at least 1"),
        ({"train__lease_ahead_s": -1}, "train.lease_ahead_s must be at least 0"),
        ({"evaluate__batch": 0}, "evaluate.batch must be at least 1"),
        ({"seed": -1}, "seed must lie in [0, 2**32)"),
        ({"runs_dir": ""}, "runs_dir must name a directory"),
        ({"data__n_train": 0}, "data.n_train must be at least 1 with a builder"),
        ({"data__builder": None}, "data needs data.path (files, folders or a hub name), data.mix or data.builder"),
        ({"data__builder": "nonsense"}, 'data.builder must be "package.module:function"'),
        ({"sideband__port": 65536}, "sideband.port must lie in [0, 65535]"),
        ({"sideband__bind": "example.org"}, "sideband.bind must be an IPv4 or IPv6 address of this machine"),
        (
            {"topology__address": "node 0"},
            "topology.address must be null, an IPv4 or IPv6 address of this",
        ),
        ({"sideband__reached_at": ["a:b"]}, "is neither HOST nor HOST:PORT"),
        ({"sideband__reached_at": ["a", "b", "c", "d"]}, "sideband.reached_at must not name more than 3, found 4"),
        ({"topology__here": 3}, "topology.here must lie in [0, topology.replicas] = [0, 2]"),
        ({"sideband__insecure": True, "sideband__keys": "k.json"}, "uses no keys, but sideband.keys names some"),
        ({"sideband__hub_timeout_s": 0.1}, "sideband.hub_timeout_s must exceed sideband.beat_s"),
        ({"fault__slow": ["2:4"]}, "fault.slow: '2:4' names replica 2; replicas are 0 to 1"),
        ({"fault__slow": ["1:0.5"]}, "fault.slow: '1:0.5' has a factor below 1"),
        ({"fault__slow": ["fast"]}, "fault.slow: 'fast' is not replica:factor, such as 1:4.0"),
        ({"fault__slow": ["1:4@soon"]}, "fault.slow: '1:4@soon' is not replica:factor, such as 1:4.0 or 1:4.0@20s"),
        ({"fault__data_wait": ["1"]}, "fault.data_wait: '1' is not replica:seconds, such as 1:0.5"),
        ({"fault__data_wait": ["2:0.5"]}, "fault.data_wait: '2:0.5' names replica 2; replicas are 0 to 1"),
        ({"fault__step_s": ["2:0.5"]}, "fault.step_s: '2:0.5' names replica 2; replicas are 0 to 1"),
        ({"model__chat_template": "no braces"}, "model.chat_template is one of chatml_tools, or the template itself"),
        ({"model__source": "hf", "model__path": None}, "model.source=hf needs model.path"),
        ({"model__source": "gguf_package", "model__package": "a==1"}, "model.source=gguf_package needs model.file"),
        (
            {"topology__replicas": 10**9},
            "topology.replicas must not exceed 100,000 (no larger fleet has been simulated)",
        ),
        ({"topology__workers": 2000, "train__micro_batch": 2000}, "topology.workers must not exceed 1,024"),
        ({"topology__silent_timeout_s": 1e300}, "topology.silent_timeout_s must not exceed 10,000,000"),
        ({"kpool__n": 10**9}, "kpool.n must not exceed 1,024"),
        ({"lora__rank": 70_000}, "lora.rank must not exceed 65,536"),
        ({"lora__rank": 12}, "lora.rank=12 cannot be shared evenly by kpool.n=8 adapters; lora.rank may be 8 or 16"),
        ({"lora__target_parameters": ["x"], "lora__dropout": 0.1}, "cannot be used with lora.dropout"),
        ({"lora__init": "pissa", "lora__dora": True}, "lora.init=pissa cannot be used with lora.dora: the exported"),
        ({"lora__init": "olora", "lora__target_parameters": ["x"]}, "lora.init=olora cannot be used with"),
        ({"train__epochs": 1e300}, "train.epochs must not exceed 1,000,000"),
        ({"data__n_train": 10**12}, "data.n_train must not exceed 100,000,000"),
        ({"evaluate__snapshots": 10**9}, "evaluate.snapshots must not exceed 10,000"),
        ({"seed": 2**70}, "seed: 1180591620717411303424 does not fit into 64 bits"),
        ({"about": "a\0b"}, "about: 'a\\x00b' has a NUL"),
        ({"fault__slow": ["1:1e30"]}, "fault.slow: '1:1e30' has a number above 1,000,000"),
        ({"fault__slow": ["1:1e999"]}, "fault.slow: '1:1e999' is not replica:factor"),
        ({"fault__nan": ["9" * 5_000 + ":1"]}, "is not replica:steps"),
        ({**GGUF, "model__package": "--index-url=http://x"}, "model.package must be a name on the package index"),
        ({**GGUF, "model__package": "x @ http://x"}, "model.package must be a name on the package index"),
        ({**GGUF, "model__package": "../x"}, "model.package must be a name on the package index"),
        ({**GGUF, "model__file": "../../etc/passwd"}, "model.file must be a path inside of the package"),
        ({**GGUF, "model__file": "/etc/passwd"}, "model.file must be a path inside of the package"),
        ({**GGUF, "model__file": "x.gguf"}, "model.file must be a path inside of the package"),
        ({"name": "a/b"}, "name becomes part of a directory's name"),
        ({"name": ""}, "name becomes part of a directory's name"),
        ({"name": ".."}, "name becomes part of a directory's name"),
        ({"name": "x" * 200}, "name becomes part of a directory's name"),
    ],
)
def test_rules(values, said, spec):
    with pytest.raises(ConfigError) as caught:
        changed(spec, **values)
    (only,) = caught.value.problems
    assert said in only


@pytest.mark.parametrize("name", ["a", "run-7_b.2", "Versuch_ä", "実験"])
def test_usable_names(name, spec):
    assert changed(spec, name=name).name == name


def test_data_needs_exactly_one_source(samples):
    assert "data takes one of data.path, data.mix and data.builder, found data.path and data.builder" in mistake(
        *BASE, f"data.path={samples}"
    )


def test_a_path_that_is_no_file_is_told_by_its_kind(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    said = {
        "/dev/zero": "data.path: /dev/zero is a character device, not a file",
        str(tmp_path / "pipe"): f"data.path: {tmp_path / 'pipe'} is a named pipe, not a file",
        str(tmp_path / "lost"): f"data.path: {tmp_path / 'lost'} is a link that leads nowhere",
        str(tmp_path): f"data.path: {tmp_path} holds no data file; read are .jsonl, .ndjson, .json, .csv, .tsv, "
        ".parquet, .arrow, .txt, also with .gz or .zst behind",
    }
    assert {path: mistake(*BASE, f"data={path}") for path in said} == said
    assert mistake(*BASE, f"recipe={tmp_path / 'pipe'}") == f"recipe={tmp_path / 'pipe'}: is a named pipe, not a file"
    assert "sideband.keys: /dev/zero is a character device" in mistake(*BASE, "sideband.keys=/dev/zero")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 20_000, "levels deep"),
        ("a: " + "{a: " * 20_000, "levels deep"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "values",
        ),
        ("name: &a [*a]", "line 1: more than"),
        ("name: \xff", "is not UTF-8 text"),
        ("x" * 2_000_000, "has more than 1048576 bytes"),
    ],
)
def test_a_recipe_that_is_no_settings_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert said in mistake(*BASE, f"recipe={path}")


def test_missing_data_file_names_the_nearest(samples):
    assert mistake(*BASE, "data=trian.jsonl") == "data.path: no such file: trian.jsonl; did you mean train.jsonl?"
    assert "there is no folder" in mistake(*BASE, "data=no/such/folder.jsonl")
    (samples.parent / "none").mkdir()
    assert "holds no data file" in mistake(*BASE, f"data={samples.parent}/none")
    assert mistake(*BASE, f"data={samples.parent}/*.csv") == f"data.path: no file matches {samples.parent}/*.csv"
    assert "no such file" in mistake(*BASE, f"data={'x' * 3000}.jsonl")
    assert "no such file" in mistake(*BASE, "data=~nobody_of_that_name/x.jsonl")


# All at once


def test_all_mistakes_are_reported_together():
    problems = mistakes(
        "model=tny", "kpool.K=2", "~kpool.n", "foo", "lora.rank=abc", "train.lr=0", "fault.slow=9:1", "name=a/b"
    )
    assert [text.split(":")[0].split(" ")[0] for text in problems] == [
        "kpool.K", "~kpool.n", "foo", "model=tny", "lora.rank", "train.lr", "name", "fault.slow",
    ]  # fmt: skip


def test_a_malformed_kpool_field_does_not_hide_other_sections():
    assert mistakes(*BASE, "kpool.k=abc", "topology.replicas=0") == [
        "kpool.k: expected int or auto, found 'abc'",
        "topology.replicas must be at least 1, found 0",
    ]


def test_a_mistake_causes_no_others():
    assert len(mistakes("data=josnl", f"data.path={__file__}")) == 1
    assert len(mistakes(*BASE, "kpool.mx_micro=30", "kpool.count=20")) == 1


token = st.one_of(
    st.text(max_size=6),
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "", "+", "++", "~", "--"]),
        st.sampled_from([*schema.leaf_types(), *overrides.group_options(), "recipe", "kpool.K", "hydra.run.dir"]),
        st.one_of(
            st.text(max_size=6),
            st.text(string.punctuation + "1e ", max_size=6),
            st.sampled_from(["null", "???", "-1", "1e999", "9" * 400, "[]", "{a: 1}", "x" * 5000, "tiny", "hf"]),
        ),
    ),
)


@few
@given(st.lists(token, max_size=5))
def test_any_tokens_give_a_spec_or_a_config_error(tokens):
    try:
        built = compose(tokens)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = ["none"]
        assert build_spec(to_tree(built)) == built
    assert problems
    assert all(text.strip() for text in problems)


# The way back


def test_tree_yaml_and_spec_are_the_same_thing(spec):
    tree = to_tree(spec)
    assert yaml.safe_load(resolved_yaml(spec)) == tree
    assert build_spec(tree) == spec
    assert list(tree) == [field.name for field in dataclasses.fields(RunSpec)]
    assert type(tree["kpool"]["mode"]) is str


def test_hash_changes_with_any_value_and_only_then(spec):
    assert config_hash(spec) == config_hash(build_spec(to_tree(spec)))
    assert len(config_hash(spec)) == 64
    assert config_hash(dataclasses.replace(spec, seed=1)) != config_hash(spec)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.one_of(st.sampled_from("\n\r\t \x85\u2028\ufeff:#-'\"\\1e."), st.characters())))
def test_any_text_survives_the_yaml(spec, text):
    written = resolved_yaml(dataclasses.replace(spec, about=text))
    assert yaml.safe_load(written)["about"] == text


def test_ambiguous_text_is_quoted_in_yaml(spec):
    written = resolved_yaml(dataclasses.replace(spec, about="5e51234", name="1:40"))
    assert "about: '5e51234'" in written
    assert "name: '1:40'" in written
    assert "bind: 127.0.0.1" in written


def test_build_spec_collects_mistakes_and_needs_no_files(spec):
    tree = to_tree(spec)
    tree["data"] |= {"builder": None, "scorer": None, "path": "/gone/since.jsonl"}
    assert build_spec(tree).data.path == "/gone/since.jsonl"
    del tree["train"]["lr"]
    tree["kpool"] |= {"k": "x", "zzz": 1}
    tree["evaluate"] = 3
    with pytest.raises(ConfigError) as caught:
        build_spec(tree)
    assert [text.split(":")[0] for text in caught.value.problems] == [
        "kpool.zzz", "kpool.k", "train.lr is missing", "evaluate",
    ]  # fmt: skip


@pytest.mark.parametrize("tree", [None, 3, [], "text", {}, {1: 2}])
def test_build_spec_of_nonsense(tree):
    with pytest.raises(ConfigError):
        build_spec(tree)


def write_run(root: Path, tree: dict) -> RunPaths:
    """What a launcher leaves that knew only these keys."""
    paths = RunPaths(root)
    paths.config.write_text(yaml.dump(tree))
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    paths.config_hash.write_text(hashlib.sha256(canonical.encode()).hexdigest())
    return paths


def test_a_run_of_an_earlier_version_has_the_default_of_what_came_since(tmp_path, spec):
    tree = to_tree(dataclasses.replace(spec, seed=7))
    assert compose_module.read_earlier(write_run(tmp_path, tree)) == (dataclasses.replace(spec, seed=7), [])
    del tree["train"]["neftune"], tree["train"]["checkpoint"], tree["model"]["chat_template"], tree["fault"]
    paths = write_run(tmp_path, tree)
    found, lacking = compose_module.read_earlier(paths)
    assert found == dataclasses.replace(spec, seed=7)
    assert {"train.neftune", "train.checkpoint.every_s", "model.chat_template", "fault.slow"} <= set(lacking)
    assert not any(key in lacking for key in ("seed", "model.source", "train.lr"))
    with pytest.raises(ConfigError, match="neftune is missing"):
        compose_module.read_resolved(paths)  # a worker's launcher has its version
    paths.config.write_text(paths.config.read_text().replace("seed: 7", "seed: 8"))
    with pytest.raises(LaunchError, match="was changed after the launch"):
        compose_module.read_earlier(paths)


def test_a_run_from_before_files_of_many_kinds_is_read(tmp_path, samples):
    later = (
        "eval test mix format columns ignore split subset revision train_on truncate on_bad_row packing fold_system"
    )
    for word in ("data=tools", f"data={samples}"):
        spec = compose(["model=tiny", word])
        tree = to_tree(spec)
        for key in later.split():
            del tree["data"][key]
        assert compose_module.read_earlier(write_run(tmp_path, tree))[0] == spec


def test_no_default_stands_for_a_model_and_what_is_unknown_stays_a_mistake(tmp_path, spec):
    tree = to_tree(spec)
    del tree["model"]["file"], tree["train"]["neftune"]
    tree["kpool"]["of_tomorrow"] = 1
    with pytest.raises(ConfigError) as caught:
        compose_module.read_earlier(write_run(tmp_path, tree))
    assert [text.split(":")[0] for text in caught.value.problems] == ["model.file is missing", "kpool.of_tomorrow"]


def test_the_fleets_second_moment_is_for_steps_that_are_averaged():
    assert compose(["train.optimizer=fleet_adamw"]).train.optimizer == "fleet_adamw"
    with pytest.raises(ConfigError, match=r"is for kpool\.mode=local"):
        compose(["train.optimizer=fleet_adamw", "kpool.mode=gradient", "kpool.max_staleness=8"])


def test_public_names():
    assert compose_module.__all__ == sorted(compose_module.__all__)
    assert all(hasattr(compose_module, name) for name in compose_module.__all__)
    assert Path(compose_module.__file__).name == "compose.py"
