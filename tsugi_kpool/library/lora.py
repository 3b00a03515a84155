"""`KPoolLoraConfig`: peft.LoraConfig for a pool of N adapters.

The user gives r and lora_alpha of ONE adapter. PEFT reads them from the config and must build the whole pool, one
LoRA of rank N*r with the same scaling, so both fields hold the pool's values, as numbers that remember
the adapter's own (`_PoolInt`, `_PoolFloat`). That makes every copy (dataclasses.replace, deepcopy, pickle) give
the same pool again, whatever else it changes: a plain number is one adapter's, a remembering one is the pool's.
dataclasses.asdict gives plain values, for JSON and YAML. They hold `made_of`, by which a config that is made of them
knows that `r` and `lora_alpha` are the pool's.
"""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from peft import LoraConfig

from tsugi_kpool.core.settings import KPool, Mode, Payload, Reduce, Routing, SelectAt, Trigger, withdrawn
from tsugi_kpool.errors import ConfigError

DEFAULT_ADDRESS = "tcp://127.0.0.1:51820"
ADDRESS = re.compile(r"tcp://([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")

KEPT_INITS = (True, False, "gaussian", "orthogonal")
"""Initialisations that leave the base weights alone and give every module the same rank."""

REFUSED = {
    "rank_pattern": "every module of a pool has the same rank, n_adapters * r",
    "alpha_pattern": "every module of a pool has the same scaling, lora_alpha / r",
    "use_bdlora": "a block-diagonal LoRA is not a sum of slices",
    "use_qalora": "QALoRA has not been verified with a pool",
    "monteclora_config": "MonteCLoRA's sampler has parameters of its own outside the pool",
    "kasa_config": "KaSA changes the base weights, on every replica by itself",
    "velora_config": "VeLoRA has not been verified with a pool",
    "arrow_config": "Arrow routes between whole adapters, not between slices of one",
    "megatron_config": "tensor parallel LoRA is not supported",
}
"""Fields of LoraConfig that a pool does not support, and why."""

PATTERNS = ("rank_pattern", "alpha_pattern")

NAMES = {"n": "n_adapters", "k": "k_active", "eps": "buffer_convergence_eps"}
"""Our names of settings that `core.settings` calls otherwise."""


class _PoolInt(int):
    """A whole number of the pool that remembers one adapter's. A copy of the number alone is a plain one."""

    one: float

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)


class _PoolFloat(float):
    """The same of any number."""

    one: float

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float(self)


class _MadeHere(str):
    """A `made_of` whose config is in this process: the numbers beside it remember by themselves."""

    def __deepcopy__(self, memo: dict[int, Any]) -> str:
        return str(self)


def _pooled(value: float, one: float) -> float:
    found: _PoolInt | _PoolFloat = _PoolInt(value) if isinstance(value, int) else _PoolFloat(value)
    found.one = one
    return found


def _one(value: Any) -> Any:
    """One adapter's number, of a plain one or of the pool's."""
    return value.one if isinstance(value, _PoolInt | _PoolFloat) else value


@dataclass
class KPoolLoraConfig(LoraConfig):  # type: ignore[misc]  # peft is not typed
    """A peft.LoraConfig whose LoRA is a pool of N adapters; `r` and `lora_alpha` are given for one of them.

    Once made, `r` and `lora_alpha` read as the pool's (what PEFT builds), `adapter_r` and `adapter_alpha` as one
    adapter's. To change anything use dataclasses.replace, with one adapter's numbers.

    Raises:
        ConfigError: values are wrong or cannot be combined with a pool; all of them at once.
    """

    n_adapters: int = field(default=8, metadata={"help": "Adapters in the pool (N)."})
    k_active: int | str = field(
        default=2, metadata={"help": 'Adapters shipped in a round (K); "auto": by what rounds cost on the link.'}
    )
    sideband_addr: str = field(default=DEFAULT_ADDRESS, metadata={"help": "Where replica 0 listens."})
    trust_network: bool = field(
        default=False,
        metadata={"help": "Only friends reach the network between machines, where adapters travel in plain TCP."},
    )
    buffer_convergence_eps: float | str = field(
        default="auto",
        metadata={"help": 'Convergence threshold; "auto" fires a round as soon as the link is free.'},
    )
    trigger: str = field(default="convergence", metadata={"help": "convergence or count"})
    count: int = field(default=4, metadata={"help": "Steps per replica at which the count trigger fires."})
    min_steps: int = field(default=2, metadata={"help": "Fewest steps per replica in a round."})
    max_steps: int = field(default=10, metadata={"help": "Most steps per replica before a round fires."})
    payload: str = field(default="int8", metadata={"help": "fp32, bf16, int8 or int4"})
    error_feedback: bool = field(default=True, metadata={"help": "Keep what coding has lost for the next round."})
    reduce: str = field(
        default="auto",
        metadata={"help": "gather: each replica sums all parts; scatter: each sums a shard for all; or auto"},
    )
    routing: str = field(default="round_robin", metadata={"help": "round_robin or loss_aware"})
    select_at: str = field(default="ship", metadata={"help": "ship: all N train, K are sent; or train: only K train"})
    fire_delay_s: float = field(
        default=0.05, metadata={"help": "Delay a round for up to this long while a step is about to end."}
    )
    round_timeout_s: float = field(default=60.0, metadata={"help": "A round that takes longer fails."})
    mode: str = field(default="local", metadata={"help": "local: every replica steps; gradient: the fleet does."})
    overlap: bool = field(default=True, metadata={"help": "Train on while a round is in flight."})
    max_staleness: int = field(
        default=20, metadata={"help": "Gradient mode: versions late at which a gradient is discarded."}
    )
    grad_clip: float | None = field(
        default=None, metadata={"help": "Gradient mode: largest norm of a round's mean gradient."}
    )

    made_of: str = field(
        default="",
        metadata={"help": "Written by the config itself: what r and lora_alpha were made of, for who reads it back."},
    )

    def __post_init__(self) -> None:
        found = self._wrong_targets() or self._read_back()
        if found:
            raise ConfigError(found)
        super().__post_init__()
        found = self._problems()
        if found:
            raise ConfigError(found)
        n, r, alpha = self.n_adapters, int(self.adapter_r), self.adapter_alpha
        # PEFT scales with alpha / r, rsLoRA with alpha / sqrt(r): the pool's alpha keeps one adapter's scaling.
        self.r = _pooled(n * r, r)
        self.lora_alpha = _pooled(alpha * math.sqrt(n) if self.use_rslora else alpha * n, alpha)
        self.made_of = _MadeHere(json.dumps([r, alpha, self.r, self.lora_alpha]))

    def __deepcopy__(self, memo: dict[int, Any]) -> KPoolLoraConfig:
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.__dict__ |= {
            name: value if name in MARKED else copy.deepcopy(value, memo) for name, value in self.__dict__.items()
        }
        return twin

    @property
    def adapter_r(self) -> int:
        """Rank of one adapter."""
        return _one(self.r)  # type: ignore[no-any-return]

    @property
    def adapter_alpha(self) -> float:
        """Alpha of one adapter."""
        return _one(self.lora_alpha)  # type: ignore[no-any-return]

    def settings(self) -> KPool:
        """The engine's settings.

        Raises:
            ConfigError: a field was assigned to since the config was made, and what is there now is wrong.
        """
        found = self._problems() or self._assigned()
        if found:
            raise ConfigError(found)
        return self._kpool()

    def to_dict(self) -> dict[str, Any]:
        """What PEFT writes to adapter_config.json: a plain LoRA, which loads where Tsugi is not installed."""
        values: dict[str, Any] = super().to_dict()
        values |= {"r": self.r, "lora_alpha": self.lora_alpha}
        return {name: value for name, value in values.items() if name not in OWN_FIELDS}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Any:
        """What from_pretrained makes of a saved adapter's values: any plain LoRA taken as a pool of n_adapters."""
        own = {name: kwargs.pop(name) for name in OWN_FIELDS if name in kwargs}
        plain = super().from_peft_type(**kwargs)
        return cls._of_pool(plain, **own) if isinstance(plain, LoraConfig) else plain

    @classmethod
    def _of_pool(cls, plain: LoraConfig, **own: Any) -> KPoolLoraConfig:
        """A pool with the whole rank and alpha of `plain`."""
        values = {each.name: getattr(plain, each.name) for each in fields(plain) if each.init}
        n = own.get("n_adapters", next(each.default for each in fields(cls) if each.name == "n_adapters"))
        if not isinstance(n, int) or n < 1 or plain.r % n:
            raise ConfigError([f"a LoRA of rank {plain.r} cannot be shared evenly by n_adapters={n}"])
        alpha = plain.lora_alpha / (math.sqrt(n) if plain.use_rslora else n)
        alpha = int(alpha) if alpha == int(alpha) else alpha
        values |= {"r": _pooled(plain.r, plain.r // n), "lora_alpha": _pooled(plain.lora_alpha, alpha)}
        return cls(**values, **own)

    def _wrong_targets(self) -> list[str]:
        """PEFT would stumble over it."""
        found = self.target_modules
        if found is None or isinstance(found, str):
            return []
        if isinstance(found, list | tuple | set | frozenset) and all(isinstance(each, str) for each in found):
            return []
        return [f"target_modules must be names of modules, a pattern or None, found {found!r}"]

    def _read_back(self) -> list[str]:
        """Fields that were written down and read back: r and lora_alpha are the pool's, unless they were changed."""
        if not self.made_of or isinstance(self.made_of, _MadeHere):
            return []
        try:
            r, alpha, pool_r, pool_alpha = json.loads(self.made_of)
        except (TypeError, ValueError):
            return [f"made_of is written by the config itself, found {self.made_of!r}: leave it out"]
        if self.r == pool_r:
            self.r = _pooled(pool_r, r)
        if self.lora_alpha == pool_alpha:
            self.lora_alpha = _pooled(pool_alpha, alpha)
        return []

    def _problems(self) -> list[str]:
        """Everything that is wrong, one text each."""
        found = self._wrong_types() or self._wrong_choices() or self._broken_rules()
        match = ADDRESS.fullmatch(str(self.sideband_addr))
        if match is None or int(match.group(2)) > 65535:
            form = "tcp://host:port or tcp://[IPv6]:port"
            found.append(f"sideband_addr must have the form {form}, found {self.sideband_addr!r}")
        found += [f"{name} cannot be used with a pool: {why}" for name, why in REFUSED.items() if self._uses(name)]
        if self.init_lora_weights not in KEPT_INITS:
            found.append(
                f"init_lora_weights={self.init_lora_weights!r} cannot be used with a pool: it changes base weights "
                "or ranks, on every replica by itself"
            )
        return found

    def _uses(self, name: str) -> bool:
        if name in PATTERNS and self._fused():
            return False
        return bool(getattr(self, name, None))  # older versions of PEFT lack some

    def _fused(self) -> bool:
        """Whether the patterns are PEFT's own: k experts' matrices in one parameter have k times rank and alpha."""
        ranks, alphas = self.rank_pattern or {}, self.alpha_pattern or {}
        times = {name: rank / self.r for name, rank in ranks.items()}
        own = all(name.startswith(r".*\.") for name in ranks) and bool(self.target_parameters)
        return own and {name: each * self.lora_alpha for name, each in times.items()} == alphas

    def _wrong_types(self) -> list[str]:
        whole = {"r": _one(self.r)} | {name: getattr(self, name) for name in WHOLE}
        if self.k_active == "auto":
            del whole["k_active"]
        numbers = {
            "lora_alpha": _one(self.lora_alpha),
            "round_timeout_s": self.round_timeout_s,
            "fire_delay_s": self.fire_delay_s,
        }
        found = [f"{name} must be a whole number, found {each!r}" for name, each in whole.items() if not _whole(each)]
        found += [f"{name} must be a number, found {each!r}" for name, each in numbers.items() if not _number(each)]
        eps = self.buffer_convergence_eps
        if eps != "auto" and not _number(eps):
            found.append(f'buffer_convergence_eps must be a number or "auto", found {eps!r}')
        clip = self.grad_clip
        if clip is not None and (not _number(clip) or clip <= 0):
            found.append(f"grad_clip must be a positive number or None, found {clip!r}")
        flags = {name: getattr(self, name) for name in FLAGS}
        wrong = {name: each for name, each in flags.items() if not isinstance(each, bool)}
        return found + [f"{name} must be True or False, found {each!r}" for name, each in wrong.items()]

    def _wrong_choices(self) -> list[str]:
        return [
            f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}"
            + withdrawn(f"kpool.{name}", getattr(self, name))
            for name, choices in CHOICES.items()
            if getattr(self, name) not in list(choices)
        ]

    def _broken_rules(self) -> list[str]:
        found = [own_names(text) for text in self._kpool().problems()]
        if self.adapter_r < 1:
            found.append(f"r must be at least 1, found {self.adapter_r}")
        if self.adapter_alpha <= 0:
            found.append(f"lora_alpha must be positive, found {self.adapter_alpha}")
        if self.grad_clip is not None and self.mode == Mode.LOCAL:
            found.append("grad_clip is of gradient mode; in local mode clip in your loop, before the step")
        return found

    def _assigned(self) -> list[str]:
        """Assigning to a field does not rebuild the pool's numbers: the config would not mean what it says."""
        same = isinstance(self.r, _PoolInt) and self.r == self.n_adapters * self.r.one
        if same and isinstance(self.lora_alpha, _PoolInt | _PoolFloat):
            return []
        return ["r, lora_alpha or n_adapters was assigned to: use dataclasses.replace, which keeps them together"]

    def _kpool(self) -> KPool:
        eps = self.buffer_convergence_eps
        return KPool(
            n=self.n_adapters,
            k="auto" if isinstance(self.k_active, str) else self.k_active,
            mode=Mode(self.mode),
            select_at=SelectAt(self.select_at),
            routing=Routing(self.routing),
            trigger=Trigger(self.trigger),
            eps="auto" if isinstance(eps, str) else float(eps),
            count=self.count,
            min_steps=self.min_steps,
            max_steps=self.max_steps,
            payload=Payload(self.payload),
            error_feedback=self.error_feedback,
            round_timeout_s=self.round_timeout_s,
            overlap=self.overlap,
            max_staleness=self.max_staleness,
            fire_delay_s=self.fire_delay_s,
            reduce=Reduce(self.reduce),
        )


OWN_FIELDS = frozenset({each.name for each in fields(KPoolLoraConfig)} - {each.name for each in fields(LoraConfig)})
MARKED = ("r", "lora_alpha", "made_of")
FLAGS = ("overlap", "error_feedback", "trust_network")
WHOLE = ("n_adapters", "k_active", "count", "min_steps", "max_steps", "max_staleness")
CHOICES = {
    "trigger": Trigger,
    "payload": Payload,
    "reduce": Reduce,
    "routing": Routing,
    "select_at": SelectAt,
    "mode": Mode,
}


def own_names(text: str) -> str:
    """A text about `kpool.*` settings with the names that KPoolLoraConfig gives them."""
    return re.sub(r"kpool\.(\w+)", lambda match: NAMES.get(match[1], match[1]), text)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))
