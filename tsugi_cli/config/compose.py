"""Where Hydra begins and ends: command-line tokens in, a frozen RunSpec out, all mistakes at once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from tsugi_cli.record.places import temporary_folder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError, LaunchError
from tsugi_kpool.foreign import read_plain

from . import adapters, compat, documents, files, names, renamed, rules, schema, spread
from . import overrides as typed
from .schema import build_spec
from .spec import RunSpec

__all__ = [
    "build_spec",
    "compose",
    "config_hash",
    "read_earlier",
    "read_resolved",
    "recipes",
    "resolved_yaml",
    "shipped_recipe",
    "to_tree",
]

_OWN = "tsugi_own_recipe"  # the config name of a user's file, which may itself be called "config"


def compose(overrides: Sequence[str], resumes: bool = False) -> RunSpec:
    """The run that these `key=value` tokens describe.

    `resumes`: the recipe is the configuration of a run, which an earlier version may have written with other names.

    Raises ConfigError with all mistakes: what was not understood is left out, and the rest is checked too.
    """
    request = typed.read(overrides)
    problems = list(request.problems)
    unsure = set(request.unsure)
    try:
        recipe = _find_recipe(request.recipe)
    except ConfigError as error:
        problems += error.problems
        unsure |= set(typed.group_options())
        recipe = typed.recipes_dir() / f"{typed.DEFAULT_RECIPE}.yaml"
    try:
        tree = _run_hydra(recipe, request, resumes)
        problems += adapters.adopt(tree, request.values) + spread.adopt(tree, request.values, os.environ, resumes)
        leaves, found = schema.read_tree(tree)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from error
    problems += found + rules.broken(leaves, unsure)
    problems += files.missing_files(leaves) + files.missing_for_a_hub(leaves)
    if problems:
        raise ConfigError(problems)
    return schema.assemble(leaves)


def recipes() -> dict[str, str]:
    """Name of each shipped recipe -> the first sentence about it."""
    found = {}
    for name in typed.recipe_names():
        tree = yaml.safe_load((typed.recipes_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
        found[name] = re.split(r"(?<=[.!?])\s", tree["about"].strip())[0]
    return found


def shipped_recipe(name: str) -> Path:
    """The file of a recipe that comes with Tsugi.

    Raises:
        ConfigError: there is none of that name.
    """
    names = typed.recipe_names()
    if name not in names:
        raise ConfigError([f"{name}: no such recipe{schema.did_you_mean(name, names)} ({', '.join(names)})"])
    return typed.recipes_dir() / f"{name}.yaml"


def to_tree(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain dicts, lists, numbers and strings; `build_spec` is the way back."""
    return cast(dict[str, Any], msgspec.to_builtins(spec))


def resolved_yaml(spec: RunSpec) -> str:
    """The spec as YAML that every reader takes for the same values."""
    return yaml.dump(to_tree(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def config_hash(spec: RunSpec) -> str:
    """SHA-256 of the spec, equal exactly for equal specs."""
    return _hash(to_tree(spec))


def _hash(tree: Any) -> str:
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_resolved(paths: RunPaths) -> RunSpec:
    """The resolved configuration, exactly as the launcher wrote it.

    Raises:
        ConfigError: there is none, or it is none of Tsugi's.
        LaunchError: its hash is another than the launcher's.
    """
    tree = _tree(paths)
    spec = build_spec(tree)
    _refuse_changed(paths, tree)
    return spec


def read_earlier(paths: RunPaths) -> tuple[RunSpec, list[str]]:
    """The same of a run that an earlier version may have written, and the keys that it lacks: the default is taken.

    Raises:
        ConfigError: as above.
        LaunchError: as above; the hash is that of the file, without what it lacks.
    """
    tree = _tree(paths)
    whole, lacking = compat.completed(tree)
    spec = build_spec(whole)
    _refuse_changed(paths, tree)
    return spec, lacking


def _tree(paths: RunPaths) -> Any:
    try:
        text = read_plain(paths.config, documents.MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigError([f"{paths.config} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{paths.config} is not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    return documents.load(text, str(paths.config))


def _refuse_changed(paths: RunPaths, tree: Any) -> None:
    try:
        expected = read_plain(paths.config_hash).decode("utf-8", "replace").strip()
    except OSError as error:
        raise LaunchError(f"{paths.config_hash} cannot be read: {error.strerror}") from error
    if _hash(tree) != expected:
        raise LaunchError(f"{paths.config} was changed after the launch: its hash is not {expected[:12]}")


class _Dumper(yaml.SafeDumper):
    """Also quotes strings that YAML 1.2 and OmegaConf read as numbers, such as the git hash 5e51234."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape what is not printable: PyYAML would write U+0085 as it is, and read it as a space."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _find_recipe(text: str) -> Path:
    """The file of a recipe: a shipped one by name, any other by path."""
    names = typed.recipe_names()
    if text in names:
        return typed.recipes_dir() / f"{text}.yaml"
    if files.is_file(text):
        path = Path(text).expanduser()
        if path.suffix in (".yaml", ".yml"):
            return path
        raise ConfigError([f"recipe={text}: a recipe is a .yaml file"])
    if (stem := Path(text).stem) in names:
        raise ConfigError([f"recipe={text}: no such file; did you mean recipe={stem}?"])
    if "/" in text or text.endswith((".yaml", ".yml")):
        what = files.other_kind(text) or f"no such file{files.near_file(text)}"
        raise ConfigError([f"recipe={text}: {what}"])
    known = f"{', '.join(names)}, or a path to your own .yaml file"
    raise ConfigError([f"recipe={text}: no such recipe{schema.did_you_mean(text, names)} ({known})"])


def _run_hydra(recipe: Path, request: typed.CommandLine, resumes: bool) -> object:
    """The composed configuration as a plain tree, not yet checked."""
    import hydra  # 0.1 s: `tsugi --help` does without
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    outdone = request.outdone()
    # Hydra takes the recipe from a folder of its own, so that what lies beside a user's file shadows nothing.
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch:
        try:
            loaded = _load_recipe(recipe, outdone, resumes)
            OmegaConf.save(loaded, Path(scratch) / f"{_OWN}.yaml")
            if outdone:  # the shipped recipes that this one builds on lose it, too
                for name, shipped in _built_on(loaded, outdone):
                    OmegaConf.save(shipped, Path(scratch) / f"{name}.yaml")
            places = ",".join(typed.quoted(f"file://{folder}") for folder in (typed.conf_dir(), typed.recipes_dir()))
            with hydra.initialize_config_dir(scratch, version_base="1.3"):
                config = hydra.compose(_OWN, [f"hydra.searchpath=[{places}]", *request.hydra_overrides()])
            return OmegaConf.to_container(config, resolve=True)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError) as error:
            raise ConfigError([f"{recipe}: {_reason(error)}"]) from error


def _load_recipe(recipe: Path, outdone: Sequence[str], resumes: bool) -> Any:
    """The recipe's YAML without what is `outdone`: its own values would win against a group's, without a word.

    One without a defaults list, such as a run's config.yaml, changes conf/config.
    """
    from omegaconf import DictConfig, OmegaConf

    text = _text_of(recipe)
    documents.load(text, str(recipe))  # in bounds, and every value can be; OmegaConf reads it again in its own way
    loaded = OmegaConf.load(io.StringIO(text))
    if resumes and isinstance(loaded, DictConfig):
        renamed.renewed(loaded)
    if old := renamed.old_keys(loaded):
        raise ConfigError([f"{recipe}: {renamed.now_called(key)}" for key in old])
    if not isinstance(loaded, DictConfig):
        raise ConfigError([f"{recipe}: expected keys with values, such as the shipped recipes have"])
    if "hydra" in loaded:
        raise ConfigError([f"{recipe}: hydra: Tsugi takes no settings for Hydra itself"])
    names.spelled(loaded)
    loaded = _without(outdone, loaded)
    if "defaults" not in loaded:
        return OmegaConf.merge({"defaults": ["config", "_self_"]}, loaded)
    defaults = cast(dict[str, Any], OmegaConf.to_container(loaded))["defaults"]
    _check_defaults(recipe, defaults)
    if "_self_" not in defaults:  # Hydra would warn, and do the same
        loaded.defaults.append("_self_")
    return loaded


def _text_of(recipe: Path) -> str:
    try:
        return read_plain(recipe.resolve(), documents.MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigError([f"{recipe} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{recipe} is not UTF-8 text ({error.reason} at byte {error.start})"]) from error


def _without(outdone: Sequence[str], loaded: Any) -> Any:
    """The same recipe; a section, or one key of it, is taken out if it is there."""
    for key in outdone:
        section, dot, name = key.partition(".")
        if dot and isinstance(loaded.get(section), MutableMapping):
            loaded[section].pop(name, None)
        elif not dot:
            loaded.pop(section, None)
    return loaded


def _built_on(loaded: Any, outdone: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The shipped recipes that a recipe's defaults name, those that theirs name, and so on; each without `outdone`.

    A name is found in whatever words stand around it. One too many does no harm: nobody asks for it.
    """
    from omegaconf import OmegaConf

    rest = {path.stem: path for path in typed.recipes_dir().glob("*.yaml")}
    waiting = [loaded]
    while waiting:
        words = str(waiting.pop().get("defaults", "")).lower()
        for name in [name for name in rest if name.lower() in words or "${" in words]:
            shipped = _without(outdone, OmegaConf.load(rest.pop(name)))
            waiting.append(shipped)
            yield name, shipped


def _check_defaults(recipe: Path, defaults: Any) -> None:
    """Hydra's own words for a mistake here would be about its internals."""
    if not isinstance(defaults, list) or not all(_is_default(entry) for entry in defaults):
        example = "[config, override model: tiny, _self_]"
        raise ConfigError([f"{recipe}: defaults must be a list, such as {example}"])
    # An entry such as "override model: tiny" is the mapping {"override model": "tiny"}.
    pairs = [pair for entry in defaults if isinstance(entry, dict) for pair in entry.items()]
    chosen = [(words.rpartition(" ")[2], option) for words, option in pairs]
    problems = [
        f"{recipe}: {typed.no_such_option(group, option)}"
        for group, option in chosen
        if option not in typed.group_options().get(group, [option])
    ]
    if problems:
        raise ConfigError(problems)


def _is_default(entry: Any) -> bool:
    if isinstance(entry, dict):
        return len(entry) == 1 and all(isinstance(word, str) for pair in entry.items() for word in pair)
    return isinstance(entry, str)


def _reason(error: Exception) -> str:
    """What is wrong, in one line and without the name of our scratch file."""
    if isinstance(error, yaml.YAMLError):
        return documents.reason(error)
    text = str(error.__cause__ or error).replace(f"In '{_OWN}': ", "").replace(_OWN, "the recipe")
    lines = text.strip().splitlines() or [repr(error)]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key else text
