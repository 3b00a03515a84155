"""A trained model in use: answers beside the base model's, streamed; and both measured on a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TextIO

import torch
from transformers import TextStreamer

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.packing import PackedSample
from tsugi_cli.data.prepared import Rows
from tsugi_cli.data.rows import Message
from tsugi_cli.data.template import Template
from tsugi_cli.record.answer import Answer

from .objectives import Objective, Preference, batch_of, objective_of
from .ready import opened


def samples_of(spec: RunSpec, path: str) -> Rows:
    """All rows of a file as the run's model would be trained on them: conversations, or preference pairs.

    Raises:
        TsugiError: the file cannot be read, or a line of it is none.
    """
    whole = replace(spec.data, builder=None, scorer=None, path=path, eval=None, test=None, mix=[], packing=False)
    data = replace(whole, n_train=0, n_eval=0, n_test=0)
    return opened(replace(spec, data=data)).train


def measure(
    model: Any, samples: Sequence[PackedSample], objective: Objective, batch: int, pad: int
) -> dict[str, float]:
    """The sums over all supervised tokens, or over all pairs."""
    sums: dict[str, float] = {}
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    with torch.inference_mode():
        for start in range(0, len(ordered), batch):
            pairs = isinstance(objective, Preference)
            objective.measure(sums, model, batch_of(ordered[start : start + batch], pad, pairs))
    return sums


def both(
    model: Any, samples: Sequence[PackedSample], spec: RunSpec, batch: int, pad: int
) -> dict[str, dict[str, float]]:
    """Base and trained."""
    objective = objective_of(spec, model)
    with model.disable_adapter():
        base = measure(model, samples, objective, batch, pad)
    return {"base": base, "trained": measure(model, samples, objective, batch, pad)}


class Speaker:
    """Answers conversations, greedily, word by word as they come.

    Args:
        model: Base model with adapters.
        tokenizer: With a chat template.
        out: Where the words go; with `--json` each answer is a line when it is whole.
        most: New tokens of one answer.
    """

    def __init__(self, model: Any, tokenizer: Any, out: Answer, most: int) -> None:
        self._model, self._tokenizer, self._out, self._most = model, tokenizer, out, most

    def answer(self, turns: list[Message], base: bool = False) -> str:
        """Say the next turn; with `base` without the adapters."""
        prompt = Template(self._tokenizer).text(turns, None, answer_next=True)
        ids = torch.tensor([self._tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode(), self._model.disable_adapter() if base else nullcontext():
            said = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._most,
                do_sample=False,
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=_Words(self._tokenizer, self._out.people),
            )
        return str(self._tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))

    def compare(self, prompt: str) -> None:
        """One prompt, base and trained one after the other."""
        turns: list[Message] = [{"role": "user", "content": prompt}]
        said = {}
        for name in ("base", "trained"):
            self._out.people.write(f"{name}: ")
            said[name] = self.answer(turns, base=name == "base")
        self._out.put({"prompt": prompt, **said})

    def chat(self, lines: Iterable[str], ask: Callable[[], None]) -> None:
        """Turn after turn with the trained model, until the lines end."""
        turns: list[Message] = []
        ask()
        for line in lines:
            if text := line.strip():
                turns.append({"role": "user", "content": text})
                said = self.answer(turns)
                turns.append({"role": "assistant", "content": said})
                self._out.put({"prompt": text, "trained": said})
            ask()


class _Words(TextStreamer):  # type: ignore[misc]
    """What no terminal should obey is taken out: a model says anything."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._out = out

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each piece of the answer."""
        kept = "".join(each for each in text if each in "\n\t" or each.isprintable())
        self._out.write(kept + ("\n" if stream_end else ""))
        self._out.flush()
