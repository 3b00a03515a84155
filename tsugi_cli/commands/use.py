"""`tsugi generate`, `tsugi eval` and `tsugi export`: a run's model after training."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Debug, Json, Run

Version = Annotated[
    str | None,
    typer.Option("--checkpoint", help="Such as v000120; default: the adapter, else the newest checkpoint."),
]


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Without one: a chat.")] = None,
    run: Run = None,
    checkpoint: Version = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Most new tokens of an answer.")] = 256,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Ask the trained model beside the base model; without a prompt, chat with it. Ctrl-D ends a chat."""
    _, model, tokenizer = _loaded(run, checkpoint)
    from tsugi_cli.finetune.ask import Speaker
    from tsugi_cli.record.answer import Answer

    speaker = Speaker(model, tokenizer, Answer.of(json), tokens)
    if prompt is not None:
        speaker.compare(prompt)
    else:
        asking = sys.stdin.isatty()
        # input() and not the stream itself: it edits lines.
        speaker.chat(iter(_line, None) if asking else sys.stdin, lambda: None)


def evaluate(
    data: Annotated[str, typer.Argument(metavar="data=FILE", help="A .jsonl file as for tsugi finetune.")],
    run: Run = None,
    checkpoint: Version = None,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Measure base and trained model on a file: loss, perplexity, token accuracy. Every token weighs the same.

    A run on preference pairs: loss, margin, and how often the chosen answer has gained more.
    """
    from tsugi_cli.config.files import is_file, no_such
    from tsugi_cli.record.measures import METRIC, counted, per_token
    from tsugi_kpool.errors import ConfigError

    path = data.removeprefix("data=")
    if not is_file(path):
        raise ConfigError([f"data={path}: {no_such(path, 'file')}"])
    trained, model, tokenizer = _loaded(run, checkpoint)
    from tsugi_cli.finetune.ask import both, samples_of
    from tsugi_cli.record.answer import Answer

    samples = samples_of(trained.spec, path)
    spec = trained.spec
    found = both(model, samples, spec, spec.evaluate.batch, tokenizer.pad_token_id)
    measured = {name: {**per_token(sums), **counted(sums)} for name, sums in found.items()}
    second, right = ("margin", "accuracy") if samples.pairs else ("perplexity", "token_accuracy")
    over = "pairs" if samples.pairs else f"samples, {measured['base']['tokens']} supervised tokens"
    words = [f"{len(samples)} {over}; {trained.name}"]
    words += [f"{'':<8} {'loss':>9} {second:>11} {'accuracy':>9}"]
    for name, each in measured.items():
        own = "".join(f"  {key} {value:.4f}" for key, value in each.items() if key.startswith(METRIC))
        columns = f"{each['loss']:>9.4f} {each.get(second, math.inf):>11.3f} {each[right]:>9.1%}"
        words += [f"{name:<8} {columns}{own}"]
    Answer.of(json).tell({"of": trained.name, "samples": len(samples), **measured}, words)


def export(
    run: Run = None,
    checkpoint: Version = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder; default: in the run directory.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="One model without PEFT, verified by its logits.")] = False,
    gguf: Annotated[Path | None, typer.Option("--gguf", help="One new file for llama.cpp, verified, too.")] = None,
    push: Annotated[str | None, typer.Option("--push", help="USER/NAME on the hub; a new one is private.")] = None,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Write a run's adapter, or one whole model, with tokenizer, chat template and model card."""
    from tsugi_cli.finetune.push import check_name
    from tsugi_cli.finetune.push import push as upload
    from tsugi_cli.finetune.trained import find
    from tsugi_cli.record.answer import Answer
    from tsugi_kpool.errors import ConfigError

    if gguf is not None and (merge or out or push):
        raise ConfigError(["--gguf FILE writes a merged model into one file: without --merge, --out and --push"])
    if push is not None:
        check_name(push)
    trained = find(run, checkpoint)
    target = gguf or out or trained.paths.root / "export" / f"{trained.name}{'-merged' if merge else ''}"
    _quieten()
    off, answer = _written(trained, target, merge, gguf is not None), Answer.of(json)
    merged = "" if off is None else f": merged, logits within {off:.1e} of base and adapter"
    answer.tell({"written": target, "of": trained.name, "logits_off": off}, f"{target}{merged}")
    if push is not None:
        upload(target, push)
        answer.tell({"uploaded": push}, f"uploaded to {push}")


def _written(trained: Any, target: Path, merge: bool, gguf: bool) -> float | None:
    """Write it; how far a merged model's logits are off."""
    from tsugi_cli.finetune.merge import export_adapter, export_gguf, export_merged

    if merge or gguf:
        return (export_gguf if gguf else export_merged)(trained, target)
    export_adapter(trained, target)
    return None


def _loaded(run: Path | None, checkpoint: str | None) -> tuple[Any, Any, Any]:
    """The state that is meant, its model and tokenizer."""
    from tsugi_cli.finetune.trained import find, load_trained

    trained = find(run, checkpoint)
    _quieten()
    return (trained, *load_trained(trained))


def _quieten() -> None:
    """Libraries tell of themselves on a user's terminal: bars for files, and what their own next version changes."""
    import warnings

    from tsugi_cli.finetune.model import quieten

    quieten()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _line() -> str | None:
    """What is typed; None at its end."""
    try:
        return input("> ")
    except EOFError:
        typer.echo()
        return None
