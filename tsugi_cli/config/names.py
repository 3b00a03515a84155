"""The words that other tools have for our settings: who types one is told ours. Our own earlier names: renamed.py."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

SPELLED: Mapping[str, str] = {"lora.from": "lora.from_adapter"}
"""What may be written -> the setting: "from" can name no field in Python."""

_RANK = "lora.rank, of the whole LoRA"
_LR = "train.lr"
_EPOCHS = "train.epochs"
_STEPS = "train.max_steps, steps of the whole fleet"
_BATCH = "train.micro_batch, samples in one step of a replica"
_LENGTH = "data.max_tokens"
_TARGETS = "lora.target_modules"
_ACCUMULATE = "train.accumulate, micro-batches in one step"
_CHECKPOINTING = "model.gradient_checkpointing=true"
_ANSWERS = "data.train_on: answers are trained, prompts never"
_QUANTIZE = "model.quantize"

HUGGING_FACE: Mapping[str, str] = {
    "learning_rate": _LR,
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "max_steps": _STEPS,
    "per_device_train_batch_size": _BATCH,
    "per_gpu_train_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "batch_size": _BATCH,
    "auto_find_batch_size": "train.batch_tokens=auto",
    "batch": "train.micro_batch, or train.batch_tokens=auto",
    "per_device_eval_batch_size": "evaluate.batch",
    "eval_steps": "evaluate.every",
    "early_stopping_patience": "train.stop_early.patience",
    "load_best_model_at_end": "train.checkpoint.best",
    "gradient_accumulation_steps": _ACCUMULATE,
    "warmup_ratio": "train.warmup, a share of the run below 1",
    "warmup_steps": "train.warmup, steps from 1 on",
    "lr_scheduler_type": "train.scheduler",
    "lr_scheduler": "train.scheduler",
    "min_lr_ratio": "train.final_lr, a share of train.lr",
    "max_grad_norm": "train.grad_clip",
    "adam_beta2": "train.beta2",
    "adam_beta1": "train.beta1",
    "optim": "train.optimizer",
    "optimizer": "train.optimizer",
    "neftune_noise_alpha": "train.neftune",
    "loraplus_lr_ratio": "train.lora_plus_ratio",
    "loraplus_lr_embedding": "train.embedding_lr",
    "label_smoothing_factor": "train.label_smoothing",
    "assistant_only_loss": _ANSWERS,
    "train_on_inputs": _ANSWERS,
    "train_on_prompt": _ANSWERS,
    "packing": "data.packing",
    "sample_packing": "data.packing",
    "group_by_length": "data.group_by_length",
    "save_steps": "train.checkpoint.every_s, in seconds",
    "save_total_limit": "train.checkpoint.keep",
    "resume_from_checkpoint": "resume=last, or resume= and a run directory",
    "output_dir": "runs_dir",
    "run_name": "name",
    "report_to": "track",
    "wandb_project": "track=[wandb]; WANDB_PROJECT names the project",
    "use_tensorboard": "track=[tensorboard]",
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "max_length": _LENGTH,
    "sequence_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "model_max_length": _LENGTH,
    "dataset": "data=NAME",
    "dataset_name": "data=NAME",
    "dataset_path": "data=FILE",
    "train_file": "data=FILE",
    "model_name_or_path": "model=FOLDER or a hub name",
    "base_model": "model=FOLDER or a hub name",
    "model_name": "model=FOLDER or a hub name",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype=bfloat16",
    "fp16": "model.dtype=float16",
    "load_in_4bit": f"{_QUANTIZE}=4bit",
    "load_in_8bit": f"{_QUANTIZE}=8bit",
    "quantization_bit": f"{_QUANTIZE}=4bit or 8bit",
    "attn_implementation": "model.attention",
    "flash_attention": "model.attention=flash_attention_2",
    "flash_attn": "model.attention=flash_attention_2",
    "use_liger_kernel": "model.liger=true",
    "use_liger": "model.liger=true",
    "torch_compile": "model.compile=true",
    "gradient_checkpointing": _CHECKPOINTING,
    "use_gradient_checkpointing": _CHECKPOINTING,
    "r": _RANK,
    "lora_r": _RANK,
    "lora_rank": _RANK,
    "lora_alpha": "lora.alpha, of the whole LoRA",
    "lora_dropout": "lora.dropout",
    "lora_target": _TARGETS,
    "lora_target_modules": _TARGETS,
    "lora_modules_to_save": "lora.modules_to_save",
    "additional_target": "lora.modules_to_save",
    "layers_to_transform": "lora.layers",
    "lora_layers_to_transform": "lora.layers",
    "use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "peft_use_rslora": "lora.rslora",
    "peft_use_dora": "lora.dora",
    "init_lora_weights": "lora.init",
    "adapter_name_or_path": "lora.from=FOLDER",
    "lora_model_dir": "lora.from=FOLDER",
    "dpo_beta": "train.dpo.beta",
    "beta": "train.dpo.beta",
    "pref_beta": "train.dpo.beta",
    "rl_beta": "train.dpo.beta",
    "loss_type": "train.dpo.loss_type",
    "pref_loss": "train.dpo.loss_type",
    "rl": "train.objective=dpo",
    "stage": "train.objective=sft or dpo",
    "max_prompt_length": "data.max_tokens, of prompt and answer together",
    "max_completion_length": "data.max_tokens, of prompt and answer together",
    "ref_model": "train.objective=dpo, whose reference is the base model without the LoRA",
    "model_ref": "train.objective=dpo, whose reference is the base model without the LoRA",
    "finetuning_type": "lora.rank: a LoRA is trained, never the whole model",
    "full_finetuning": "lora.rank: a LoRA is trained, never the whole model",
    "fsdp": "topology.inside=fsdp2 with topology.workers",
    "nproc_per_node": "topology.replicas, or topology.workers for one replica on several GPUs",
    "num_processes": "topology.replicas, or topology.workers for one replica on several GPUs",
    "use_cpu": "topology.device=cpu",
    "no_cuda": "topology.device=cpu",
}
"""A word of transformers, TRL, PEFT, axolotl or LLaMA-Factory -> ours, with a word about it where they differ."""


_RL = "reinforcement learning is not offered"
NOT_OFFERED: Mapping[str, Mapping[str, str]] = {
    "train.objective": {
        **dict.fromkeys(("grpo", "ppo", "rloo", "reinforce", "online_dpo", "nash_md", "xpo"), _RL),
        **dict.fromkeys(("reward", "rm", "reward_model", "prm"), "reward models are not offered"),
        **dict.fromkeys(("kto", "bco"), "answers that are marked one by one are not offered: pairs are, with dpo"),
        **dict.fromkeys(("orpo", "cpo", "simpo"), "preferences without a reference are not offered"),
        **dict.fromkeys(("pt", "pretrain", "pretraining"), 'rows of "text" are trained on with sft'),
        **dict.fromkeys(("full", "full_finetuning"), "a LoRA is trained, never the whole model"),
        **dict.fromkeys(("vlm", "vision"), "images are not offered"),
        "distillation": "distillation is not offered",
        "gkd": "distillation is not offered",
        "ipo": "it is train.objective=dpo train.dpo.loss_type=ipo",
    },
}
"""Setting -> what other tools have there and we have not, in their words."""


def not_offered(key: str, value: Any) -> str:
    """What to say to somebody who wants something that we have not, as the end of a sentence; "" for other words."""
    known = NOT_OFFERED.get(key, {}).get(str(value).casefold().replace("-", "_"))
    return f"; {known}" if known else ""


def ours(key: str) -> str | None:
    """The text for a key that another tool has, whatever section it is written in."""
    word = key.rpartition(".")[2].casefold().replace("-", "_")
    return f"{key}: no such key; here it is {HUGGING_FACE[word]}" if word in HUGGING_FACE else None


def spelled(tree: MutableMapping[str, Any]) -> None:
    """Write the settings of a recipe as they are called inside, in place."""
    for key, setting in SPELLED.items():
        section, _, name = key.partition(".")
        inside = tree.get(section)
        if isinstance(inside, MutableMapping) and name in inside:
            inside[setting.partition(".")[2]] = inside.pop(name)
