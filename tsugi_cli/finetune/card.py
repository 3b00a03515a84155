"""The model card of an adapter: text of README.md in its folder. Pure; the launcher adds what only it knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tsugi_cli.config.adapters import described
from tsugi_cli.config.spec import Model, RunSpec

RESULTS = "## Results"
_TWICE = "; here as a plain LoRA of twice the rank"
"""Its start values were taken out of the base weights."""


def base_name(model: Model) -> str:
    """How somebody else would call the base model: a hub id, a directory, a file, or a package and its file."""
    if model.source == "hf":
        return str(model.path)
    if model.source == "gguf":
        return Path(model.path or "").name
    return "tiny, a random model that Tsugi makes" if model.source == "tiny" else f"{model.package}, {model.file}"


def card(spec: RunSpec, base: str, revision: str | None, data_digest: str) -> str:
    """README.md of an adapter.

    Args:
        spec: The run's.
        base: What loads the base model: a directory or a hub id.
        revision: Its commit on the hub, where one is known.
        data_digest: SHA-256 over all splits.
    """
    n, k = spec.kpool.n, spec.kpool.k
    facts = {
        "Base model": base_name(spec.model),
        "Revision": revision or "not known",
        "Data (SHA-256)": data_digest,
        "Recipe": f"{spec.name}, seed {spec.seed}",
        "Fleet": f"{spec.topology.replicas} replicas x {spec.topology.workers} workers",
        "LoRA": described(spec.lora) + (_TWICE if spec.lora.changes_base else ""),
        "Pool": f"N={n} adapters of rank {spec.lora.rank // n}, K={k} of them in a round",
        "Learning rate": f"{spec.train.lr:g}",
    }
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    table = f"| | |\n| --- | --- |\n{rows}"
    return f"{_head(spec, base)}\n# {spec.name}\n\n{spec.about}\n\n{table}\n\n{_loading(spec.model, base)}"


def with_results(text: str, summary: Mapping[str, Any]) -> str:
    """The same card with what the run came to; results that it had are replaced.

    Args:
        text: As `card` made it.
        summary: The content of summary.json.
    """
    kept = text.partition(f"\n{RESULTS}\n")[0].rstrip()
    evaluation = summary.get("evaluation") or {}
    base, trained = evaluation.get("base") or {}, evaluation.get("trained") or {}
    rows = [f"| {name} | {_number(base.get(name))} | {_number(trained.get(name))} |" for name in base | trained]
    tokens, version = summary.get("tokens"), summary.get("version")
    lines = [f"{tokens} supervised tokens, {version} rounds, outcome: {summary.get('outcome')}.", ""]
    table = ["| held out | base | trained |", "| --- | --- | --- |", *rows] if rows else ["Nothing was evaluated."]
    return "\n".join([kept, "", RESULTS, "", *lines, *table, ""])


def _head(spec: RunSpec, base: str) -> str:
    """The hub's metadata; only a hub id may stand as base model there."""
    head: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "tsugi"]}
    if spec.model.source == "hf" and not base.startswith("/"):
        head["base_model"] = base
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _loading(model: Model, base: str) -> str:
    told = repr(base) if model.revision is None else f"{base!r}, revision={model.revision!r}"
    told += ", trust_remote_code=True" if model.trust_remote_code else ""
    return (
        "## How to load\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, "
        f"AutoTokenizer\n\nbase = AutoModelForCausalLM.from_pretrained({told})\n"
        'model = PeftModel.from_pretrained(base, "PATH OF THIS FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")\n```\n'
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "–"
