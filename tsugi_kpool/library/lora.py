"""`KPoolLoraConfig`: peft.LoraConfig for a pool of N adapters.

The user gives r and lora_alpha of ONE adapter. PEFT reads them from the config and must build the whole pool, one
LoRA of rank N*r with the same scaling, so both fields hold the pool's values, as numbers that remember
the adapter's own (`pool_numbers.py`). `lora_checks.py` says what a pool cannot be made of.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields
from typing import Any

from peft import LoraConfig

from tsugi_kpool.core.settings import KPool, Mode, Payload, Reduce, Routing, SelectAt, Trigger
from tsugi_kpool.errors import ConfigError

from .lora_checks import assigned, problems, wrong_targets
from .pool_numbers import made_of, one, pooled, read_back

DEFAULT_ADDRESS = "tcp://127.0.0.1:51820"


@dataclass
class KPoolLoraConfig(LoraConfig):  # type: ignore[misc, unused-ignore]  # peft has no types that we can use
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
        metadata={"help": "Who reaches the network between machines leaves replicas' connections alone."},
    )
    buffer_convergence_eps: float | str = field(
        default="auto",
        metadata={"help": 'Convergence threshold; "auto" fires a round as soon as the link is free.'},
    )
    trigger: str = field(default="convergence", metadata={"help": "convergence or count"})
    count: int = field(default=4, metadata={"help": "Steps per replica at which the count trigger fires."})
    min_steps: int = field(default=2, metadata={"help": "Fewest steps per replica in a round."})
    max_steps: int = field(default=10, metadata={"help": "Most steps per replica before a round fires."})
    payload: str = field(default="int8", metadata={"help": "fp32, bf16, int8, int4 or int2"})
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
    linger: float = field(
        default=0.0,
        metadata={
            "help": "Share of a step (0.2 at most) to wait after it for the commit of one's own newest change."
        },
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
        found = wrong_targets(self.target_modules) or self._read_back()
        if found:
            raise ConfigError(found)
        super().__post_init__()  # type: ignore[no-untyped-call, unused-ignore]
        found = problems(self, self._kpool)
        if found:
            raise ConfigError(found)
        n, r, alpha = self.n_adapters, int(self.adapter_r), self.adapter_alpha
        # PEFT scales with alpha / r, rsLoRA with alpha / sqrt(r): the pool's alpha keeps one adapter's scaling.
        self.r = pooled(n * r, r)
        self.lora_alpha = pooled(alpha * math.sqrt(n) if self.use_rslora else alpha * n, alpha)
        self.made_of = made_of(r, alpha, self.r, self.lora_alpha)

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
        return one(self.r)  # type: ignore[no-any-return]

    @property
    def adapter_alpha(self) -> float:
        """Alpha of one adapter."""
        return one(self.lora_alpha)  # type: ignore[no-any-return]

    def settings(self) -> KPool:
        """The engine's settings.

        Raises:
            ConfigError: a field was assigned to since the config was made, and what is there now is wrong.
        """
        found = problems(self, self._kpool) or assigned(self)
        if found:
            raise ConfigError(found)
        return self._kpool()

    def to_dict(self) -> dict[str, Any]:
        """What PEFT writes to adapter_config.json: a plain LoRA, which loads where Tsugi is not installed."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call, unused-ignore]
        values |= {"r": self.r, "lora_alpha": self.lora_alpha}
        return {name: value for name, value in values.items() if name not in OWN_FIELDS}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Any:
        """What from_pretrained makes of a saved adapter's values: any plain LoRA taken as a pool of n_adapters."""
        own = {name: kwargs.pop(name) for name in OWN_FIELDS if name in kwargs}
        plain = super().from_peft_type(**kwargs)  # type: ignore[no-untyped-call, unused-ignore]
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
        values |= {"r": pooled(plain.r, plain.r // n), "lora_alpha": pooled(plain.lora_alpha, alpha)}
        return cls(**values, **own)

    def _read_back(self) -> list[str]:
        """Fields that were written down and read back."""
        found, self.r, self.lora_alpha = read_back(self.made_of, self.r, self.lora_alpha)
        return found

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
            linger=self.linger,
        )


OWN_FIELDS = frozenset({each.name for each in fields(KPoolLoraConfig)} - {each.name for each in fields(LoraConfig)})
MARKED = ("r", "lora_alpha", "made_of")
