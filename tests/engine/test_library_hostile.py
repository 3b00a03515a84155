"""The library with a loop that does what one does not expect: it works, or says in one line what is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.library import Pair, batch, config, digest, our_threads, pooled_model, session_of_one, train, trained
from tests.support import tiny_model
from tsugi_kpool import ConfigError, KPoolCallback, plesio_init, plesio_shutdown
from tsugi_kpool.library.plesio import begin_anew, keep_apart
from tsugi_kpool.library.rendezvous import key_file
from tsugi_kpool.world import World


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_an_optimizer_that_was_made_before(tmp_path):
    """And its state, and a scheduler, and a copy of the adapter saved while training goes on."""
    pair = Pair(tmp_path / "keys", config())
    optimizers = [torch.optim.AdamW(trained(model), lr=1e-2) for model in pair.models]
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 2) for optimizer in optimizers]

    def body(model, handle) -> None:
        for step in range(6):
            ids = batch(10 * handle.replica + step)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizers[handle.replica].step()
            optimizers[handle.replica].zero_grad()
            schedules[handle.replica].step()
            model.save_pretrained(tmp_path / f"adapter{handle.replica}")
        progress = pair.engine(handle.replica).progress
        assert (progress.steps, progress.lr) == (6, pytest.approx(1e-4))

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_a_model_that_is_cast_after_the_start_is_refused(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        train(model, 1)
        model.bfloat16()
        with pytest.raises(ConfigError, match=r"is trained in torch\.bfloat16; a pool is trained in fp32"):
            train(model, 2000)  # until a round looks at it
        model.float()

    errors = pair.run(body, body)
    assert all(error is None or "bfloat16" in str(error) for error in errors), errors


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_a_model_whose_storages_are_replaced_goes_on(tmp_path):
    """As .to(device) does."""
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        train(model, 2)
        with handle._session.engine.buffer.undisturbed():
            for parameter in trained(model):
                parameter.data = parameter.data.clone()
        train(model, 4, seed=handle.replica)

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])


def test_a_compiled_model_counts_every_step(tmp_path):
    """The hooks run at every call, not only when the graph is made; plesio_init takes the compiled model, too."""
    from tsugi_kpool.library.session import meet

    model = pooled_model(config())
    session = meet(model, config().settings(), "default", World(), "tcp://127.0.0.1:0", tmp_path / "keys")
    compiled = torch.compile(model, backend="eager")
    train_called(compiled, 4)
    progress = session.engine.progress
    assert (progress.steps, progress.tokens, progress.samples) == (4, 4 * 22, 8)
    assert progress.loss > 0.0
    session.drain(60)
    handle = plesio_init(compiled, config())
    plesio_shutdown(compiled)
    assert handle.closed


def train_called(model, steps: int) -> None:
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    for step in range(steps):
        ids = batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("hooks_of_two_threads")
@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_a_loop_that_goes_round_the_model_is_refused(tmp_path, mode):
    """Nobody would know how many tokens a step was trained on."""
    pair = Pair(tmp_path / "keys", config(mode=mode))

    def body(model, handle) -> None:
        train_called(model.get_base_model(), 1)

    errors = pair.run(body, body)
    assert any(isinstance(error, ConfigError) and "was never called" in str(error) for error in errors)


def test_another_config_is_refused():
    model = pooled_model(config())
    for wrong in (LoraConfig(r=8), {"r": 8}, None):
        with pytest.raises(ConfigError, match="a pool needs the KPoolLoraConfig that get_peft_model was given"):
            plesio_init(model, wrong)
        with pytest.raises(ConfigError, match="a pool needs the KPoolLoraConfig"):
            KPoolCallback(wrong)
    with pytest.raises(ConfigError, match="a pool needs the KPoolLoraConfig"):
        plesio_init(config(), model)


def test_an_accelerator_that_was_there_first_is_refused(monkeypatch):
    monkeypatch.setattr(PartialState, "_shared_state", {"num_processes": 2, "_cpu": True})
    monkeypatch.setattr(PartialState, "__init__", lambda self: self.__dict__.update(PartialState._shared_state))
    with pytest.raises(ConfigError, match="set up before for 2 processes"):
        keep_apart(World(replicas=2))
    keep_apart(World())


def test_several_pools_of_one_program_meet_in_different_places():
    assert key_file(World(), 0) != key_file(World(), 1)


def test_two_models_are_in_two_pools():
    models = [pooled_model(config()) for _ in range(2)]
    with plesio_init(models[0], config()) as first, plesio_init(models[1], config()) as second:
        train(models[0], 1)
        assert first is not second
    assert our_threads() == []
    for model in models:
        with pytest.raises(ConfigError, match="in no pool"):
            plesio_shutdown(model)


def test_alone_the_clipping_of_gradient_mode_is_the_steps():
    """As torch's clip_grad_norm_ before every step, and nothing of another model's."""
    settings = config(mode="gradient", grad_clip=0.01)
    ours, plain, other = pooled_model(settings), pooled_model(settings), torch.nn.Linear(1, 1)
    with plesio_init(ours, settings):
        optimizer = torch.optim.SGD(trained(ours), lr=1.0)
        ids = batch(0)
        ours(input_ids=ids, labels=ids).loss.backward()
        other(torch.full((1,), 100.0)).backward()
        gradient = other.weight.grad.clone()
        torch.optim.SGD(other.parameters(), lr=1.0).step()
        optimizer.step()
    assert torch.equal(other.weight.grad, gradient)
    moved = torch.cat([(a - b).detach().reshape(-1) for a, b in zip(trained(ours), trained(plain), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
    again = torch.optim.SGD(trained(ours), lr=1.0)
    ours(input_ids=ids, labels=ids).loss.backward()
    again.step()
    assert float(torch.cat([p.grad.reshape(-1) for p in trained(ours)]).norm()) > 0.02, "the block has ended"


@pytest.mark.parametrize(
    ("mode", "own", "replicas", "expected"),
    [
        ("gradient", None, 2, (0.0, 1.0)),
        ("gradient", 0.5, 2, (0.0, 0.5)),
        ("gradient", None, 1, (1.0, None)),
        ("local", None, 2, (1.0, None)),
    ],
)
def test_the_trainers_clipping_is_applied_to_what_is_applied(mode, own, replicas, expected):
    """In gradient mode its limit is the round's; afterwards its arguments are what they were."""
    callback = KPoolCallback(config(mode=mode, grad_clip=own), replica=0, replicas=replicas)
    arguments = SimpleNamespace(max_grad_norm=1.0, load_best_model_at_end=False)
    given = callback._clipping(arguments)
    assert (arguments.max_grad_norm, given.grad_clip) == expected
    assert (given.adapter_r, given.r) == (2, 8)
    callback.on_train_end(arguments, None, None)
    assert arguments.max_grad_norm == 1.0


def test_a_second_trainer_of_the_same_process_has_a_precision_of_its_own(tmp_path):
    """As in a notebook: accelerate keeps the first one's for ever."""
    for precision in ("no", "bf16", "no"):
        pool = KPoolCallback(config(), replica=0, replicas=1)
        arguments = TrainingArguments(
            str(tmp_path),
            accelerator_config={"use_configured_state": True},
            bf16=precision == "bf16",
            max_steps=1,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = [{"input_ids": row, "labels": row} for row in batch(0, 4)]
        trainer = Trainer(pooled_model(config()), arguments, train_dataset=data, callbacks=[pool])
        trainer.train()
        assert trainer.accelerator.mixed_precision == precision
        assert pool.handle.closed


def trainer(folder, model, *callbacks, **arguments) -> Trainer:
    values = {"max_steps": 3, "use_cpu": True, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    configured = {"use_configured_state": True}
    given = TrainingArguments(str(folder), accelerator_config=configured, **{**values, **arguments})
    data = [{"input_ids": row, "labels": row} for row in batch(0, 24)]
    return Trainer(model, given, train_dataset=data, callbacks=list(callbacks))


class FailsOnce(TrainerCallback):
    def __init__(self, text: str) -> None:
        self.text = text

    def on_step_end(self, args, state, control, **kwargs) -> None:
        text, self.text = self.text, ""
        if text:
            raise RuntimeError(text)


def test_a_trainer_that_begins_anew_stays_in_its_pool(tmp_path):
    """By itself with a smaller batch, or because somebody calls train again after an error."""
    pool = KPoolCallback(config(), replica=0, replicas=1)
    oom = FailsOnce("CUDA out of memory.")
    trainer(tmp_path, pooled_model(config()), pool, oom, auto_find_batch_size=True).train()
    assert pool.handle.closed
    failing = trainer(tmp_path, pooled_model(config()), pool, FailsOnce("a callback of the user's own"))
    with pytest.raises(RuntimeError, match="user's own"):
        failing.train()
    handle = pool.handle
    assert not handle.closed
    failing.train()
    assert handle is pool.handle
    assert handle.closed


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize("how", [{"bf16": True}, pytest.param(COMPILED, marks=pytest.mark.nightly)])
def test_a_trainer_in_bf16_or_compiled_is_the_plain_one(tmp_path, how):
    settings = config(payload="fp32", min_steps=1)
    ours, plain = pooled_model(settings), pooled_model(settings)
    begin_anew(World())
    beside = trainer(tmp_path, ours, gradient_accumulation_steps=2, **how)
    with session_of_one(tmp_path / "keys", ours, settings) as session:
        beside.train()
        ledger = session.engine.buffer.ledger
    torch._dynamo.reset()
    begin_anew(World())
    trainer(tmp_path, plain, gradient_accumulation_steps=2, **how).train()
    assert ledger.committed == [(16 + 8 + 16) * 11] * 4, "an epoch has one and a half steps"
    torch.testing.assert_close(trained(ours), trained(plain), atol=1e-6, rtol=0)


def test_a_second_accelerator_of_another_precision_is_refused_until_the_state_is_reset():
    """By accelerate itself. After the reset it is again alone with its process."""
    begin_anew(World())
    Accelerator(cpu=True)
    plesio_init(pooled_model(config()), config()).close()
    with pytest.raises(ValueError, match="has already been initialized"):
        Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state()
    plesio_init(pooled_model(config()), config()).close()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    assert (accelerator.mixed_precision, accelerator.num_processes) == ("bf16", 1)
    AcceleratorState._reset_state()


def test_a_trainer_that_keeps_the_labels_says_what_is_counted():
    pool = KPoolCallback(config(), replica=0, replicas=2)
    arguments = SimpleNamespace(label_smoothing_factor=0.1)
    with pytest.warns(UserWarning, match="weighs its attended tokens"), pytest.raises(ConfigError):
        pool.on_train_begin(arguments, None, None, model=tiny_model())
