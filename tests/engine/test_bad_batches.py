"""One bad sample is left out, named and counted; a model that has diverged is not blamed on its data."""

from __future__ import annotations

import json

import pytest
import torch

from tests.engine.test_resume import STEPS, manifest
from tests.engine.test_step import Trained
from tests.runs import run
from tsugi_cli.finetune import objectives, step
from tsugi_cli.finetune.bad_batches import IN_A_ROW, BadBatches
from tsugi_cli.finetune.step import StepBatches, Taken
from tsugi_cli.finetune.tokens import Sample, collate
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.engine.inside import ALONE as BY_ITSELF
from tsugi_kpool.engine.local_group import Whole


class Ears:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def skipped(self, reason: str, tokens: int, batches: int) -> None:
        assert tokens
        assert batches == 1
        self.heard.append(reason)


def spoil(monkeypatch, ids: list[int]) -> None:
    """Every batch that has this sample has no finite loss, nor has the sample by itself."""
    original = objectives.supervised_loss

    def loss(model, batch, *rest):
        found = original(model, batch, *rest)
        has = any(row[: len(ids)].tolist() == ids for row in batch.ids)
        return found * torch.nan if model.training and has else found

    monkeypatch.setattr(objectives, "supervised_loss", loss)


def test_a_step_without_its_bad_micro_batch_has_the_gradient_of_the_others(monkeypatch):
    """They are weighed by their own tokens, and all samples count as trained on."""
    trained = Trained()
    (whole,) = trained.steps(Lease(0, 0, 6), micro_batch=2, accumulate=3)
    others = StepBatches(
        sum(whole.batches[at].tokens for at in (0, 2)), (whole.batches[0], whole.batches[2]), whole.places
    )
    _, expected = trained.gradient(others)
    row = whole.batches[1].ids[1]
    spoil(monkeypatch, row[row.ne(trained.tokenizer.pad_token_id)].tolist())
    taken = step.gradients(trained.model, whole, BY_ITSELF)
    gradient = torch.cat([each.grad.flatten() for each in trained.parameters])
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert (taken.bad, taken.whole.tokens, taken.whole.samples) == ((1,), others.tokens, 6)
    ears = Ears()
    names = [f"mine.jsonl:{position}" for position in range(6)]
    judged = BadBatches(trained.model, lambda position: names[position : position + 1], ears)
    assert judged.judge(whole, taken) is None
    assert ears.heard == ["mine.jsonl:3 (sample 3)"], "the sample of the two that is bad by itself"


class OfTwo:
    """A worker whose partner has no samples in this step, but the same model."""

    worker, workers = 0, 2

    def sum(self, numbers):
        return list(numbers)


def test_workers_leave_out_the_whole_step_because_they_must_do_the_same(monkeypatch):
    """Whoever of them had it; two such steps in a row are two, however many micro-batches they have."""
    trained = Trained()
    (whole,) = trained.steps(Lease(0, 0, 6), micro_batch=2, accumulate=3)
    row = whole.batches[1].ids[1]
    spoil(monkeypatch, row[row.ne(trained.tokenizer.pad_token_id)].tolist())
    taken = step.gradients(trained.model, whole, OfTwo())
    assert all(each.grad is None for each in trained.parameters)
    assert (taken.bad, taken.as_one, taken.whole.tokens, taken.whole.samples) == ((0, 1, 2), True, 0, 6)
    ears = Ears()
    judged = BadBatches(trained.model, lambda position: [f"mine.jsonl:{position}"], ears)
    assert judged.judge(whole, taken) is None
    judged.clear()
    assert ears.heard == [f"{', '.join(f'mine.jsonl:{at}' for at in range(6))} (sample 0)"]


def pattern(said: str, judged: BadBatches) -> list[str | None]:
    """Steps of one micro-batch each: x has no finite loss, . has one; what is said after each."""
    batch = collate([Sample([1, 2, 3], [1, 2, 3])], 0)
    found = []
    for at, each in enumerate(said):
        taken = Taken(Whole(0, 1, 0.0, 3, 1.0), (0,) if each == "x" else ())
        found.append(judged.judge(StepBatches(2, (batch,), (range(at, at + 1),)), taken))
    return found


def test_a_model_whose_weights_are_no_numbers_is_not_blamed_on_its_data():
    """Not even when a round sets it right before the next step: two such samples ended a whole fleet."""
    trained, ears = Trained(), Ears()
    judged = BadBatches(trained.model, lambda position: [f"mine.jsonl:{position}"], ears)
    kept = trained.parameters[0].detach().clone()
    with torch.no_grad():
        trained.parameters[0].fill_(torch.nan)
    (reason,) = pattern("x", judged)
    assert "its own weights are no numbers at sample 0: lower train.lr" in reason
    with torch.no_grad():
        trained.parameters[0].copy_(kept)
    assert pattern("..", judged) == [None, None]
    assert ears.heard == []


@pytest.mark.parametrize(
    ("said", "left_out", "begun_again"),
    [
        ("..x.x..", [2, 4], []),
        ("xx.", [0, 1], []),
        ("..xxx.", [], [4]),
        ("..xxxx", [], [4, 5]),
        ("xxxx.xx", [5, 6], [2, 3]),
        ("xxx" + "." + "x", [4], [2]),
        ("x", [0], []),
    ],
)
def test_it_is_the_sample_where_the_next_one_is_sound_and_the_model_where_several_are_not(
    said, left_out, begun_again
):
    assert IN_A_ROW == 3
    ears = Ears()
    judged = BadBatches(torch.nn.Linear(1, 1), lambda position: [f"f:{position}"], ears)
    verdicts = pattern(said, judged)
    judged.clear()
    assert ears.heard == [f"f:{at} (sample {at})" for at in left_out]
    assert [at for at, verdict in enumerate(verdicts) if verdict] == begun_again
    assert all("lower train.lr" in verdicts[at] for at in begun_again)


@pytest.mark.parametrize("words", [("kpool.mode=local",), ("kpool.mode=gradient",), ("kpool.select_at=train",)])
def test_a_run_goes_on_without_a_bad_sample_and_names_it(tmp_path, monkeypatch, words):
    """Every sample is taken off the list once, the bad ones too; nothing that was buffered is thrown away."""
    trained = Trained()
    spoil(monkeypatch, trained.data.train[5].ids)
    paths = run([*STEPS, *words, "train.micro_batch=2", "train.max_steps=32"], tmp_path, monkeypatch)
    told = [json.loads(line) for line in paths.events.read_text().splitlines()]
    (skipped,) = [event for event in told if event["event"] == "skipped"]
    assert skipped["reason"].startswith(f"{trained.data.train.places(5)[0]} (sample ")
    assert skipped["batches"] == 1
    assert not [event for event in told if event["event"] == "discarded"]
    assert manifest(paths).done == ((0, 64),)
