"""Preference pairs in training: TRL's losses against a base that is there once, exact however a step is cut."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from tests import runs
from tests.engine.test_resume import adapter, manifest
from tests.runs import run
from tests.support import await_true
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import Dpo
from tsugi_cli.finetune.bad_batches import BadBatches
from tsugi_cli.finetune.between_steps import OnCopy
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.objectives import Preference, Scores, answer_logps, losses
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.step import gradients
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.engine.inside import ALONE as BY_ITSELF

WORDS = (
    "model=tiny", "train.objective=dpo", "topology.replicas=1", "topology.min_replicas=1", "data.n_eval=6",
    "evaluate.examples=0", "train.micro_batch=2", "lora.rank=8", "lora.alpha=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    records = [
        {"prompt": f"Is {at} large?", "chosen": f"Yes, {at} is." * (1 + at % 3), "rejected": f"No idea {at % 7}."}
        for at in range(46)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return f"data={path}"


class Trained:
    """The tiny model with a LoRA that has begun to learn."""

    def __init__(self, words) -> None:
        self.spec = compose(words)
        base, self.tokenizer = load(self.spec.model)
        self.model = add_pool(base, self.spec.lora).train()
        self.data = opened(self.spec)
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]
        torch.manual_seed(3)
        for each in self.parameters:
            torch.nn.init.normal_(each, std=0.05)
        self.objective = Preference(self.spec.train.dpo, self.model)

    def steps(self, lease: Lease, **train):
        spec = replace(self.spec, train=replace(self.spec.train, **train))
        return list(LeasedBatches(spec, self.data, self.tokenizer).steps(lease))

    def gradient(self, step):
        found = gradients(self.model, step, BY_ITSELF, self.objective).whole
        flat = torch.cat([each.grad.flatten() for each in self.parameters])
        self.model.zero_grad(set_to_none=True)
        return found, flat


@pytest.fixture(scope="module")
def trained(data) -> Trained:
    return Trained([*WORDS, data])


@pytest.mark.parametrize("cut", [{"micro_batch": 1, "accumulate": 12}, {"micro_batch": 5, "accumulate": 3},
                                 {"micro_batch": 12, "batch_tokens": 2048}])  # fmt: skip
def test_pairs_weigh_the_same_however_a_step_is_cut(trained, cut):
    lease = Lease(ticket=0, start=3, stop=15, micro_batch=12)
    (big,), (small,) = trained.steps(lease, micro_batch=12), trained.steps(lease, **cut)
    (whole, expected), (found, gradient) = trained.gradient(big), trained.gradient(small)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (found.tokens, found.samples) == (whole.tokens, whole.samples) == (big.tokens, 12)


def test_the_reference_is_the_base_and_nothing_of_training_changes_by_asking_it(trained):
    """The answers' log-probabilities are those of the model before it had a LoRA, to the bit."""
    (step,) = trained.steps(Lease(ticket=0, start=0, stop=4), micro_batch=4)
    batch = step.batches[0]
    base, _ = load(trained.spec.model)
    with torch.no_grad():
        expected = answer_logps(base, batch)
        asked = trained.parameters[0].requires_grad_(False)  # as one that does not train at present
        scores = trained.objective.scores(trained.model, batch)
        now = answer_logps(trained.model, batch)
    assert not asked.requires_grad
    asked.requires_grad_(True)
    assert trained.model.training
    torch.testing.assert_close(scores.chosen, (now - expected)[0::2], rtol=0, atol=0)
    torch.testing.assert_close(scores.rejected, (now - expected)[1::2], rtol=0, atol=0)
    assert float(scores.chosen.abs().min()) > 0


def test_log_probabilities_are_those_of_the_answers_alone(trained):
    (step,) = trained.steps(Lease(ticket=0, start=0, stop=3), micro_batch=3)
    batch = step.batches[0]
    with torch.no_grad():
        found = answer_logps(trained.model, batch)
        logits = trained.model(batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
    targets = batch.labels[:, 1:]
    plain = logits.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
    torch.testing.assert_close(found, plain.sum(1), rtol=1e-5, atol=1e-4)


def test_a_copy_is_measured_against_the_same_reference(trained):
    """As an evaluation while training does: the live values stay, and say something else."""
    (step,) = trained.steps(Lease(ticket=0, start=0, stop=3), micro_batch=3)
    named = {name: each for name, each in trained.model.named_parameters() if each.requires_grad}
    copy = OnCopy(trained.model, {name: torch.zeros_like(each) for name, each in named.items()})
    sums, live = {}, {}
    with torch.no_grad():
        trained.objective.measure(sums, copy, step.batches[0])
        trained.objective.measure(live, trained.model, step.batches[0])
    assert (sums["margin_sum"], sums["loss_tokens"], sums["right_pairs"]) == (0, 3, 0)
    assert live["margin_sum"] != 0
    nothing = {}
    trained.objective.measure(nothing, trained.model, step.batches[0].weightless())
    assert nothing == {}


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sigmoid", -math.log(logistic(0.2 * 5))),
        ("hinge", max(0.0, 1 - 0.2 * 5)),
        ("ipo", (2 / 4 - -3 / 2 - 1 / 0.4) ** 2),
        ("robust", -(0.9 * math.log(logistic(1.0)) - 0.1 * math.log(logistic(-1.0))) / 0.8),
        ("apo_zero", 1 - logistic(0.4) + logistic(-0.6)),
        ("apo_down", logistic(0.4) + 1 - logistic(1.0)),
    ],
)
def test_losses_are_those_of_the_papers(kind, expected):
    scores = Scores(*(torch.tensor([value]) for value in (2.0, -3.0)), *(torch.tensor([n]) for n in (4, 2)))
    settings = Dpo(beta=0.2, loss_type=kind, label_smoothing=0.1 if kind == "robust" else 0.0)
    assert float(losses(settings, scores)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_the_pair_that_breaks_a_loss_is_named(trained, monkeypatch):
    (step,) = trained.steps(Lease(ticket=0, start=0, stop=3), micro_batch=3)
    bad = BadBatches(trained.model, lambda position: [f"pair {position}"], None, trained.objective)
    second = step.batches[0].ids[2]

    def broken(settings, scores, whole=losses):
        return whole(settings, scores) * (math.nan if broken.rows == 2 else 1)

    broken.rows = 0
    whole_scores = trained.objective.scores

    def scores(forward, batch):
        broken.rows = 2 if len(batch.ids) == 2 and torch.equal(batch.ids[0], second) else 0
        return whole_scores(forward, batch)

    monkeypatch.setattr("tsugi_cli.finetune.objectives.losses", broken)
    monkeypatch.setattr(trained.objective, "scores", scores)
    assert bad._culprits(step.batches[0], 3) == [1]


def test_a_run_prefers_what_was_chosen_and_resumes_bit_for_bit(data, tmp_path, monkeypatch):
    """With rounds, checkpoints and evaluation while training; the margin is in the summary, and it grows."""
    words = [*WORDS, data, "train.max_steps=40", "train.lr=0.01", "kpool.min_steps=1", "kpool.overlap=false",
             "train.checkpoint.every_s=0"]  # fmt: skip
    whole = run([*words, "evaluate.every=10"], tmp_path, monkeypatch)
    await_true(lambda: whole.adapter.exists(), "the adapter")
    told = {each["stage"]: each["sums"] for each in lines(whole.events) if each.get("event") == "evaluated"}
    assert told["base"]["margin_sum"] == 0
    assert told["base"]["loss_sum"] / told["base"]["loss_tokens"] == pytest.approx(math.log(2))
    assert told["trained"]["loss_tokens"] == 6
    assert told["trained"]["margin_sum"] > 1
    assert told["trained"]["right_pairs"] >= 5
    undisturbed = run(words, tmp_path, monkeypatch)
    first = run(words, tmp_path, monkeypatch, stop_at=15)
    assert 0 < manifest(first).samples < 80
    last = run([f"resume={first.root}"], tmp_path, monkeypatch)
    assert manifest(last).samples == 80
    assert adapter(last) == adapter(undisturbed)


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_a_real_model_comes_to_prefer_what_was_chosen(tmp_path, monkeypatch):
    """SmolLM2-135M-Instruct learns to answer in few words; pairs that were held out say so."""
    monkeypatch.setattr(runs, "WAIT_S", 240.0)
    things = ["sea", "sun", "rain", "moon", "wind", "snow", "tree", "bird", "fish", "stone", "fire", "road", "lamp"]
    path = tmp_path / "pairs.jsonl"
    records = [
        {"prompt": f"What is a {thing} {how}?", "chosen": f"A {thing}. Short enough?",
         "rejected": f"That is a wonderful question about the {thing}! Let me explain it in great detail."}
        for thing in things
        for how in ("like", "for", "made of")
    ]  # fmt: skip
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    words = ["model=smollm2_135m", f"data={path}", *WORDS[1:4], "data.n_eval=6", "evaluate.examples=0",
             "train.micro_batch=2", "train.max_steps=16", "train.lr=2e-4", "kpool.min_steps=1"]  # fmt: skip
    paths = run(words, tmp_path, monkeypatch)
    told = {each["stage"]: each["sums"] for each in lines(paths.events) if each.get("event") == "evaluated"}
    assert told["base"]["margin_sum"] == pytest.approx(0, abs=1e-3)
    assert told["trained"]["margin_sum"] / 6 > 0.1
    assert told["trained"]["right_pairs"] == 6
    assert told["trained"]["loss_sum"] < told["base"]["loss_sum"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
