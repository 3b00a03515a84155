"""The library: the config, a loop that knows nothing of us, two replicas as threads, good and bad endings."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
import threading
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from torch.optim import optimizer as torch_optimizer

from tests.support import tiny_model
from tsugi_kpool import ConfigError, KPoolCallback, KPoolLoraConfig, TsugiError, meeting, plesio_init, plesio_shutdown
from tsugi_kpool.core.settings import Payload, Routing, Trigger
from tsugi_kpool.errors import EnvironmentError_, LaunchError, SidebandError
from tsugi_kpool.sideband import keys as key_files
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.world import World, hidden, read

JOIN_S = 60


def config(**changes) -> KPoolLoraConfig:
    """A small pool with some values changed."""
    values = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "n_adapters": 4, "k_active": 2}
    return KPoolLoraConfig(**{**values, "sideband_addr": "tcp://127.0.0.1:0", **changes})


def pooled_model(settings: LoraConfig):
    """The tiny model with a LoRA whose values are always the same, B included."""
    model = tiny_model()
    torch.manual_seed(1)
    model = get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.normal_(std=0.05)
    return model


def trained(model) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def batch(seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))


def train(model, steps: int, seed: int = 0) -> None:
    """An ordinary loop."""
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    for step in range(steps):
        ids = batch(100 * seed + step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def digest(model) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained(model))).hexdigest()


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "tsugi" in thread.name]


# --- the config -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"r": 0}, ["r must be at least 1, found 0"]),
        ({"r": 2.5}, ["r must be a whole number"]),
        ({"n_adapters": 2, "k_active": 3}, ["k_active must not exceed n_adapters"]),
        ({"k_active": 0}, ["k_active must be at least 1"]),
        ({"n_adapters": True}, ["n_adapters must be a whole number"]),
        ({"lora_alpha": -1}, ["lora_alpha must be positive"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha must be a number"]),
        ({"buffer_convergence_eps": 0}, ['buffer_convergence_eps must be positive or "auto"']),
        ({"buffer_convergence_eps": "often"}, ['buffer_convergence_eps must be a number or "auto"']),
        ({"sideband_addr": "udp://here:1"}, ["sideband_addr must have the form tcp://host:port"]),
        ({"sideband_addr": "tcp://here"}, ["sideband_addr"]),
        ({"sideband_addr": "tcp://here:70000"}, ["sideband_addr"]),
        ({"trigger": "never"}, ["trigger must be one of convergence, count"]),
        ({"payload": "int3", "routing": "x"}, ["payload must be one of fp32, bf16, int8", "routing must be one of"]),
        ({"max_micro": 1}, ["max_micro must be at least", "count must lie in"]),
        ({"round_timeout_s": 0}, ["round_timeout_s must be positive"]),
        ({"use_dora": True}, ["DoRA's magnitude vector is not a sum over adapters"]),
        (
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4}},
            ["rank_pattern cannot", "alpha_pattern cannot"],
        ),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save cannot be used with a pool"]),
        ({"bias": "all", "init_lora_weights": "pissa"}, ['bias must be "none"', "init_lora_weights='pissa'"]),
        ({"k_active": 9, "use_dora": True, "sideband_addr": "x"}, ["k_active", "sideband_addr", "use_dora"]),
    ],
)
def test_all_mistakes_at_once(changes, texts):
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert len(caught.value.problems) == len(texts)
    for problem, text in zip(caught.value.problems, texts, strict=True):
        assert text in problem


def test_settings_are_those_of_one_adapter():
    settings = config(
        buffer_convergence_eps=0.5, trigger="count", payload="bf16", routing="random", error_feedback=False
    ).settings()
    assert (settings.n, settings.k, settings.r, settings.lora_alpha, settings.eps) == (4, 2, 2, 4, 0.5)
    assert settings.target_modules == ["q_proj", "v_proj"]
    assert (settings.trigger, settings.payload, settings.routing) == (Trigger.COUNT, Payload.BF16, Routing.RANDOM)
    assert not settings.error_feedback


def test_the_defaults_are_the_command_lines():
    from pathlib import Path

    import yaml

    text = (Path(__file__).parents[2] / "conf" / "kpool" / "default.yaml").read_text(encoding="utf-8")
    shipped = yaml.safe_load(text)
    ours = dataclasses.asdict(KPoolLoraConfig(target_modules="all-linear").settings())
    assert {name: ours[name] for name in shipped if name not in ("r", "lora_alpha")} == {
        name: value for name, value in shipped.items() if name not in ("r", "lora_alpha")
    }


COPIES = {
    "replace": dataclasses.replace,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),  # noqa: S301
    "dict": lambda each: KPoolLoraConfig(**each.to_dict(), n_adapters=4),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_copy_is_the_same_pool(make, rslora):
    first = config(use_rslora=rslora)
    second = make(make(first))
    assert (second.r, second.lora_alpha, second.adapter_r, second.adapter_alpha) == (
        8, first.lora_alpha, 2, 4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "r", "alpha"),
    [({"n_adapters": 8}, 16, 32), ({"r": 4}, 16, 16), ({"r": 8}, 32, 16), ({"use_rslora": True}, 8, 8.0)],
)
def test_replace_takes_one_adapters_numbers(changes, r, alpha):
    changed = dataclasses.replace(config(), **changes)
    assert (changed.r, changed.lora_alpha) == (r, alpha)


@pytest.mark.parametrize("name", ["r", "lora_alpha", "n_adapters"])
def test_assigning_is_noticed(name):
    changed = config()
    setattr(changed, name, 3)
    with pytest.raises(ConfigError, match=r"dataclasses\.replace"):
        changed.settings()


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 4 / 2), (True, 4 / 2**0.5)])
def test_the_scaling_is_one_adapters(rslora, scaling):
    model = get_peft_model(tiny_model(), config(use_rslora=rslora))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(scaling, rel=1e-12)
    assert layer.lora_A["default"].weight.shape[0] == 8


def test_a_saved_adapter_is_plain_peft(tmp_path):
    model = pooled_model(config())
    expected = model(input_ids=batch(0)).logits
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that it does not know
        saved = PeftConfig.from_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert type(saved) is LoraConfig
    assert (saved.r, saved.lora_alpha) == (8, 16)
    assert torch.equal(again(input_ids=batch(0)).logits, expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_saved_adapter_can_be_a_pool_again(tmp_path, rslora):
    first = config(use_rslora=rslora)
    first.save_pretrained(str(tmp_path))
    again = KPoolLoraConfig.from_pretrained(str(tmp_path), n_adapters=4, k_active=1)
    assert isinstance(again, KPoolLoraConfig)
    assert (again.r, again.adapter_r, again.k_active) == (8, 2, 1)
    assert again.lora_alpha == pytest.approx(first.lora_alpha, rel=1e-12)
    with pytest.raises(ConfigError, match="cannot be shared evenly"):
        KPoolLoraConfig.from_pretrained(str(tmp_path), n_adapters=3)


# --- a process without peers ------------------------------------------------------------------------------


def test_alone_it_is_plain_peft_bit_for_bit():
    ours = pooled_model(config())
    plain = pooled_model(LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    assert digest(ours) == digest(plain)
    with plesio_init(ours, config()) as handle:
        assert (handle.replica, handle.replicas, our_threads()) == (0, 1, [])
        train(ours, 10)
    train(plain, 10)
    assert digest(ours) == digest(plain)


def test_a_model_is_in_one_pool_at_a_time():
    model = pooled_model(config())
    handle = plesio_init(model, config())
    with pytest.raises(ConfigError, match="already"):
        plesio_init(model, config())
    plesio_shutdown(model)
    assert handle.closed
    handle.close()
    with pytest.raises(ConfigError, match="in no pool"):
        plesio_shutdown(model)
    plesio_init(model, config()).close()


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="get_peft_model"):
        plesio_init(tiny_model(), config())
    model = pooled_model(config())
    with pytest.raises(ConfigError, match="not the one of this config"):
        plesio_init(model, config(n_adapters=8))
    model.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"lm_head\.weight is trained but not part of the pool"):
        plesio_init(model, config())
    half = get_peft_model(tiny_model().bfloat16(), config(), autocast_adapter_dtype=False)
    with pytest.raises(ConfigError, match="not fp32"):
        plesio_init(half, config())


def test_another_adapter_name_will_do():
    model = get_peft_model(tiny_model(), config(), adapter_name="mine")
    plesio_init(model, config()).close()


# --- two replicas, as threads -----------------------------------------------------------------------------


class Listed(OrderedDict):
    """torch iterates over its global hooks; here, and only here, another thread removes its own meanwhile."""

    def values(self):
        return list(super().values())


@pytest.fixture
def hooks_of_two_threads(monkeypatch):
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        monkeypatch.setattr(torch_optimizer, name, Listed())


class Pair:
    """Two replicas in one process; `run` gives each its thread and returns what each of them met."""

    def __init__(self, keys, first: KPoolLoraConfig, second: KPoolLoraConfig | None = None) -> None:
        self.keys, self.settings = keys, (first, second or first)
        self.models = [pooled_model(copy.deepcopy(each)) for each in self.settings]
        self.handles: list = [None, None]

    def run(self, *bodies) -> list[BaseException | None]:
        errors: list[BaseException | None] = [None, None]

        def replica(number: int) -> None:
            try:
                model, own = self.models[number], self.settings[number]
                with plesio_init(model, own, replica=number, replicas=2, keys=self.keys) as handle:
                    self.handles[number] = handle
                    bodies[number](model, handle)
            except BaseException as error:  # noqa: BLE001
                errors[number] = error

        threads = [threading.Thread(target=replica, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()
        return errors

    def engine(self, replica: int):
        return self.handles[replica]._session.engine


def hooks_of(model) -> int:
    found = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
    return sum(map(len, (*found, model._forward_pre_hooks, model._forward_hooks)))


@pytest.mark.parametrize(
    "changes", [{}, {"payload": "fp32", "trigger": "count", "k_active": 4}], ids=["int8", "fp32"]
)
@pytest.mark.usefixtures("hooks_of_two_threads")
def test_two_replicas_end_on_one_adapter(tmp_path, changes):
    pair = Pair(tmp_path / "keys", config(**changes))
    before = digest(pair.models[0])
    errors = pair.run(
        lambda model, handle: train(model, 12, seed=handle.replica),
        lambda model, handle: train(model, 30, seed=handle.replica),
    )
    assert errors == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1]) != before
    assert pair.handles[0].version == pair.handles[1].version >= 2
    for replica, steps in enumerate((12, 30)):
        ledger = pair.engine(replica).buffer.ledger
        assert ledger.produced == ledger.committed == [steps * 2 * 11] * 4
    assert [hooks_of(model) for model in pair.models] == [0, 0]
    assert our_threads() == []
    assert not (tmp_path / "keys").exists()


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_only_what_is_trained_on_counts(tmp_path):
    """Accumulated batches make one step; evaluation, masked labels and other models' optimizers count nothing."""
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
        other = torch.nn.Linear(2, 2)
        ids, masked = batch(0), batch(0)
        masked[:, :6] = -100
        with torch.no_grad():
            model(input_ids=ids, labels=ids)
        model(input_ids=ids, labels=masked).loss.backward()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        other(torch.ones(2)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=1.0).step()
        model(ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
        optimizer.step()
        progress = pair.engine(handle.replica).progress
        assert (progress.micro_steps, progress.samples, progress.tokens) == (2, 6, 12 + 22 + 24)
        assert progress.loss > 0.0

    assert pair.run(body, body) == [None, None]


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_a_step_that_raises_does_not_keep_the_lock(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    class Breaks(torch.optim.SGD):
        def step(self, closure=None):
            raise ArithmeticError("in the step")

    def body(model, handle) -> None:
        lock = pair.engine(handle.replica).buffer._lock
        ids = batch(0)
        model(input_ids=ids, labels=ids).loss.backward()
        with pytest.raises(ArithmeticError):
            Breaks(trained(model), lr=0.1).step()
        assert lock.locked()
        model(input_ids=ids, labels=ids)
        train(model, 6, seed=handle.replica)
        with pytest.raises(ArithmeticError):
            Breaks(trained(model), lr=0.1).step()  # the last thing before closing

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])


@pytest.mark.usefixtures("hooks_of_two_threads")
@pytest.mark.parametrize("culprit", [0, 1])
def test_an_exception_of_the_user_ends_everybody_and_leaves_nothing(tmp_path, culprit):
    pair = Pair(tmp_path / "keys", config())

    def breaks(model, handle) -> None:
        train(model, 3)
        raise KeyError("spilt")

    def goes_on(model, handle) -> None:
        for _ in range(3000):
            train(model, 1, seed=1)

    errors = pair.run(*([breaks, goes_on] if culprit == 0 else [goes_on, breaks]))
    assert isinstance(errors[culprit], KeyError)
    assert isinstance(errors[1 - culprit], TsugiError)
    assert f"replica {culprit}: KeyError: 'spilt'" in str(errors[1 - culprit])
    assert our_threads() == []
    assert [hooks_of(model) for model in pair.models] == [0, 0]


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_a_replica_with_another_pool_is_refused(tmp_path):
    pair = Pair(tmp_path / "keys", config(), config(payload="fp32"))
    errors = pair.run(lambda *_: None, lambda *_: None)
    assert all(isinstance(error, TsugiError) for error in errors)
    assert any("its configuration differs" in str(error) for error in errors)
    assert our_threads() == []


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_a_copy_of_the_model_is_in_no_pool(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        twin = copy.deepcopy(model)
        train(twin, 2)
        assert pair.engine(handle.replica).progress.micro_steps == 0
        with pytest.raises(ConfigError, match="in no pool"):
            plesio_shutdown(twin)
        train(model, 2)

    assert pair.run(body, body) == [None, None]


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_distributed_data_parallel_is_refused(tmp_path, monkeypatch):
    pair = Pair(tmp_path / "keys", config())
    both_joined = threading.Barrier(2)

    def body(model, handle) -> None:
        both_joined.wait(JOIN_S)
        fake = SimpleNamespace(process_group=SimpleNamespace(size=lambda: 2))
        monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", fake)
        with pytest.raises(ConfigError, match="DistributedDataParallel over 2 processes"):
            train(model, 1)
        both_joined.wait(JOIN_S)

    assert pair.run(body, body) == [None, None]


# --- finding each other -----------------------------------------------------------------------------------


def test_the_world_is_torchruns():
    alone = read(environ={})
    assert (alone.replica, alone.replicas, alone.one_machine) == (0, 1, True)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0"}
    world = read(environ=torchrun)
    assert (world.replica, world.replicas, world.local_replica, world.one_machine) == (3, 4, 1, False)
    assert meeting.hub_host(world, "tcp://0.0.0.0:1") == "node0"
    assert meeting.hub_host(world, "tcp://10.0.0.7:1") == "10.0.0.7"
    assert meeting.hub_host(read(environ={"WORLD_SIZE": "2"}), "tcp://0.0.0.0:1") == "127.0.0.1"
    assert (read(1, 2, {}).replica, read(1, 2, torchrun).replicas) == (1, 2)


@pytest.mark.parametrize("given", [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_a_place_that_does_not_exist_is_refused(given):
    with pytest.raises(ConfigError, match="replica"):
        read(*given, {})


def test_hidden_variables_come_back(monkeypatch):
    import os

    monkeypatch.setenv("WORLD_SIZE", "2")
    with hidden():
        assert "WORLD_SIZE" not in os.environ
    assert os.environ["WORLD_SIZE"] == "2"


def test_the_key_folder_is_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = meeting.key_file(World(run="a"))
    assert path != meeting.key_file(World(run="b"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(EnvironmentError_, match="only you can enter"):
        meeting.key_file(World())


def test_a_file_that_an_earlier_run_left_is_not_believed(tmp_path):
    path = tmp_path / "keys"
    with pytest.raises(LaunchError, match="no such file"):
        meeting.find_hub(path, "127.0.0.1", "tcp://127.0.0.1:0", 0.3)
    key_files.save(dataclasses.replace(RunKeys.generate(), address="tcp://127.0.0.1:9"), path)
    with pytest.raises(LaunchError, match="no hub answers"):
        meeting.find_hub(path, "127.0.0.1", "tcp://127.0.0.1:0", 0.5)
    path.chmod(0o644)
    with pytest.raises(SidebandError, match="0600"):
        meeting.find_hub(path, "127.0.0.1", "tcp://127.0.0.1:0", 9.0)


def test_a_port_in_use_is_said_so(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = config(sideband_addr=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(EnvironmentError_, match="cannot listen"):
            plesio_init(pooled_model(busy), busy, replica=0, replicas=2, keys=tmp_path / "keys")
    assert our_threads() == []


# --- the Trainer's callback -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"world_size": 2}, "use_configured_state"),
        ({"n_gpu": 8}, "CUDA_VISIBLE_DEVICES"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
    ],
)
def test_the_callback_refuses_what_cannot_work(changes, text):
    usual = {"world_size": 1, "n_gpu": 0, "load_best_model_at_end": False}
    callback = KPoolCallback(config(), replica=0, replicas=2)
    callback.on_init_end(SimpleNamespace(**usual), None, None)
    with pytest.raises(ConfigError, match=text):
        callback.on_init_end(SimpleNamespace(**{**usual, **changes}), None, None)
    KPoolCallback(config(), replica=0, replicas=1).on_init_end(SimpleNamespace(**{**usual, **changes}), None, None)


def test_peft_knows_every_field_that_is_refused():
    """A renamed field of LoraConfig would be refused no more."""
    from tsugi_kpool.lora import REFUSED

    assert peft.__version__
    assert set(REFUSED) <= {each.name for each in dataclasses.fields(LoraConfig)}
