"""The settings of a benchmark: frozen dataclasses, and how `bench.*` tokens set them. Values are in conf/bench/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from tsugi_cli.config import overrides as typed
from tsugi_cli.config.renamed import now_called
from tsugi_cli.config.schema import did_you_mean, hints_of, read_leaf, takes_list
from tsugi_kpool.errors import ConfigError

PREFIX = "bench."
MOST = {"steps": 100_000, "sync_every": 1_000_000, "points": 10_000}
"""Upper limits: a benchmark makes dozens of runs and keeps every moment's adapters."""
MOST_OF_A_SCENARIO = {
    "slow": 1_000_000, "jitter": 3, "mbit_s": 1_000_000, "delay_ms": 1_000_000, "delay_jitter_ms": 1_000_000,
}  # fmt: skip
MOST_NAMED, MOST_SCALE = 100, 1_000_000
METHODS = ("ddp", "local_sgd", "diloco", "drop_slowest", "kpool")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The conditions that the fleet runs under."""

    about: str
    emulate: bool
    """Whether every step is padded to the emulated device's time; false: the machine as it is."""
    slow: float
    """How many times slower the last replica is."""
    jitter: float
    """Sigma of a lognormal with mean 1, drawn for every step of every replica."""
    link: Literal["none", "each", "racks"]
    """none: the network as it is; each: every replica behind a link of its own; racks: one link between two halves.
    """
    mbit_s: float
    """Rate of each such link, both ways."""
    delay_ms: float
    """Delay of each such link, one way."""
    delay_jitter_ms: float
    """Largest extra delay, drawn evenly for each packet."""
    loss: float
    """Share of packets that each such link loses."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One benchmark."""

    name: str
    """Name of the scenario."""
    scenario: Scenario
    methods: list[str]
    kpool: list[str]
    """Overrides of the pool, separated by blanks: each entry is one arm. "default" changes nothing."""
    seeds: list[int]
    lr_scales: list[float]
    """Multiples of train.lr that are tried."""
    steps: int
    device_step_s: float
    sync_every: int
    points: int
    target: float | Literal["auto"]


Checks = Callable[[dict[str, Any], dict[str, Any]], list[str]]
"""Rules: the values and the scenario's values -> a text for every rule that they break."""
Described = TypeVar("Described")


def read(tokens: Sequence[str]) -> Bench:
    """Return the benchmark that these `bench.key=value` tokens describe.

    Raises:
        ConfigError: with all mistakes.
    """
    return described(Bench, "default", tokens, broken)


def described(cls: type[Described], settings: str, tokens: Sequence[str], checks: Checks) -> Described:
    """Return the settings shipped under this name, changed by `bench.key=value` tokens.

    Args:
        cls: A dataclass with the name of a scenario, the scenario, and more.
        settings: In conf/bench/settings.
        tokens: As typed.
        checks: Rules for well-formed values.

    Raises:
        ConfigError: with all mistakes.
    """
    given = dict(token.removeprefix(PREFIX).partition("=")[::2] for token in tokens)
    problems: list[str] = []
    name = given.pop("scenario", None) or _usual_scenario()
    if name not in scenarios():
        problems.append(f"bench.scenario={name}: no such scenario{did_you_mean(name, scenarios())}{_known()}")
        name = _usual_scenario()
    tree = _shipped(settings, name)
    values: dict[str, Any] = {"name": name}
    for key, hint in hints_of(cls).items():
        if key not in ("name", "scenario"):
            values[key] = _value(key, hint, given.pop(key, tree[key]), problems)
    scenario = {
        key: _value(f"scenario.{key}", hint, given.pop(f"scenario.{key}", tree["scenario"][key]), problems)
        for key, hint in hints_of(Scenario).items()
    }
    unread = len(problems)
    problems += [_no_such_key(cls, key) for key in given]
    if not unread:
        problems += checks(values, scenario)
    if problems:
        raise ConfigError(problems)
    return cls(**values, **{"scenario": Scenario(**scenario)})


def scenarios() -> list[str]:
    """Return the names of the shipped scenarios."""
    return sorted(path.stem for path in (typed.conf_dir() / "bench" / "scenario").glob("*.yaml"))


def split(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (tokens of the benchmark, tokens of its runs)."""
    own = [token for token in tokens if token.startswith(PREFIX)]
    return own, [token for token in tokens if not token.startswith(PREFIX)]


def broken(values: dict[str, Any], scenario: dict[str, Any]) -> list[str]:
    """Return a text for every rule that well-formed values break."""
    found = [
        f"bench.methods: found {method}, allowed: {', '.join(METHODS)}{did_you_mean(method, list(METHODS))}"
        for method in values["methods"]
        if method not in METHODS
    ]
    for key in ("methods", "kpool", "seeds", "lr_scales"):
        if not values[key]:
            found.append(f"bench.{key} must name at least one")
        if len(set(values[key])) < len(values[key]):
            found.append(f"bench.{key} names one twice")
    found += [
        f"bench.lr_scales must be positive and at most {MOST_SCALE:,}, found {scale}"
        for scale in values["lr_scales"]
        if not 0 < scale <= MOST_SCALE
    ]
    found += [
        f"bench.seeds must lie in [0, 2**32), found {seed}" for seed in values["seeds"] if not 0 <= seed < 2**32
    ]
    for key in ("steps", "sync_every", "points"):
        if values[key] < 1:
            found.append(f"bench.{key} must be at least 1, found {values[key]}")
    found += [
        f"bench.{key} must name at most {MOST_NAMED}, found {len(values[key])}"
        for key in ("methods", "kpool", "seeds", "lr_scales")
        if len(values[key]) > MOST_NAMED
    ]
    return found + beyond(MOST, values) + scenario_problems(values, scenario)


def beyond(most: Mapping[str, float], values: Mapping[str, Any], prefix: str = PREFIX) -> list[str]:
    """Return a text for every number above its upper limit."""
    return [
        f"{prefix}{key} must not exceed {limit:,}, found {values[key]}"
        for key, limit in most.items()
        if isinstance(values[key], int | float) and values[key] > limit
    ]


def scenario_problems(values: dict[str, Any], scenario: dict[str, Any]) -> list[str]:
    found = []
    if values["device_step_s"] < 0:
        found.append(f"bench.device_step_s must be at least 0, found {values['device_step_s']}")
    if scenario["slow"] < 1:
        found.append(f"bench.scenario.slow must be at least 1, found {scenario['slow']}")
    found += beyond({"device_step_s": 1_000_000}, values) + beyond(MOST_OF_A_SCENARIO, scenario, f"{PREFIX}scenario.")
    if scenario["jitter"] < 0:
        found.append(f"bench.scenario.jitter must be at least 0, found {scenario['jitter']}")
    if scenario["link"] != "none" and scenario["mbit_s"] <= 0:
        found.append(f"bench.scenario.mbit_s must be positive, found {scenario['mbit_s']}")
    late = [key for key in ("delay_ms", "delay_jitter_ms", "loss") if scenario[key]]
    found += [f"bench.scenario.{key} must be at least 0, found {scenario[key]}" for key in late if scenario[key] < 0]
    if scenario["loss"] >= 1:
        found.append(f"bench.scenario.loss is a share below 1, found {scenario['loss']}")
    if scenario["link"] == "none":
        found += [f"bench.scenario.{key} needs links: bench.scenario.link=each or racks" for key in late]
    if scenario["jitter"] and not (scenario["emulate"] and values["device_step_s"]):
        found.append("bench.scenario.jitter needs an emulated device: emulate=true and bench.device_step_s above 0")
    return found


def _shipped(settings: str, scenario: str) -> dict[str, Any]:
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(typed.conf_dir() / "bench"), version_base="1.3"):
        config = hydra.compose(f"settings/{settings}", [f"scenario={scenario}"])
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _usual_scenario() -> str:
    return "straggler4x"


def _known() -> str:
    return f" ({', '.join(scenarios())})"


def _value(key: str, hint: Any, given: Any, problems: list[str]) -> Any:
    """Return a well-formed value, or None after noting a problem."""
    value = typed.list_items(hint, given) if isinstance(given, str) and takes_list(hint) else given
    leaves: dict[str, Any] = {}
    read_leaf(f"{PREFIX}{key}", hint, value, leaves, problems, typed=False)
    return leaves.get(f"{PREFIX}{key}")


def _no_such_key(cls: Any, key: str) -> str:
    if renamed := now_called(f"{PREFIX}{key}"):
        return renamed
    known = [*hints_of(cls), *(f"scenario.{name}" for name in hints_of(Scenario))]
    near = did_you_mean(key, known).replace("mean ", f"mean {PREFIX}")
    return f"bench.{key}: no such key{near or '; there are ' + ', '.join(known)}"
