"""Every `lora.*` option of a run: trained in a pool, averaged between replicas, exported as plain PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.library import batch, trained
from tests.support import tiny_model
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import Lora
from tsugi_cli.finetune.export import export
from tsugi_cli.finetune.lora import add_pool, start_of
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.errors import ConfigError

N = 4
FEW = ["q_proj", "v_proj"]
OPTIONS = {
    "dropout": {"dropout": 0.3},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "save": {"modules_to_save": ["lm_head", "input_layernorm"]},
    "layers": {"layers": [1]},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "random": {"init": False},
    "all": {"rslora": True, "dora": True, "dropout": 0.1, "layers": [0], "modules_to_save": ["lm_head"]},
}
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip


def lora(**changes) -> Lora:
    return Lora(**{"rank": 8, "alpha": 16.0, "target_modules": FEW, **changes})


def made(settings: Lora, base=tiny_model):
    torch.manual_seed(1)
    return add_pool(base(), settings)


def steps(model, count: int, seed: int = 0) -> None:
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    model.train()
    for step in range(count):
        ids = batch(100 * seed + step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def averaged(first, second) -> None:
    """What a round of all adapters does."""
    pools = [AdapterPool(model, N) for model in (first, second)]
    mean = (pools[0].read(range(N)) + pools[1].read(range(N))) / 2
    for pool in pools:
        pool.write(mean)


def round_trip(model, folder, base=tiny_model):
    """The model again, of plain PEFT and the exported folder."""
    export(model, folder)
    return PeftModel.from_pretrained(base(), folder).eval()


def same_logits(one, other) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            one(input_ids=batch(0)).logits, other(input_ids=batch(0)).logits, atol=1e-5, rtol=0
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_an_option_trains_is_averaged_and_loads_in_plain_peft(tmp_path, changes):
    replicas = [made(lora(**changes)) for _ in range(2)]
    start = [each.detach().clone() for each in trained(replicas[0])]
    for seed, model in enumerate(replicas):
        steps(model, 3, seed)
    averaged(*replicas)
    same_logits(*replicas)
    for before, parameter in zip(start, trained(replicas[0]), strict=True):
        assert (before != parameter).any(), "every trained parameter takes part"
    same_logits(replicas[0], round_trip(replicas[0], tmp_path / "adapter"))


def test_dropout_is_off_when_it_is_not_trained():
    model = made(lora(dropout=0.5, init=False))
    one, other = (model.train()(input_ids=batch(0)).logits for _ in range(2))
    assert not torch.equal(one, other)
    same_logits(model.eval(), model)


@pytest.mark.filterwarnings("ignore")
def test_half_precision_of_the_base_leaves_what_is_trained_in_fp32(tmp_path):
    def base():
        return tiny_model().to(torch.bfloat16)

    model = made(lora(modules_to_save=["lm_head", "input_layernorm"]), base)
    assert {each.dtype for each in trained(model)} == {torch.float32}
    steps(model, 2)
    AdapterPool(model, N)
    assert model(input_ids=batch(0)).logits.isfinite().all()


def test_an_adapter_is_trained_further(tmp_path):
    first = made(lora(modules_to_save=["lm_head"], rslora=True))
    steps(first, 3)
    export(first, tmp_path / "adapter")
    spec = compose(["model=tiny", f"lora.from={tmp_path / 'adapter'}", "kpool.n=4"])
    assert (spec.lora.rank, spec.lora.alpha, spec.lora.rslora) == (8, 16.0, True)
    assert (spec.lora.target_modules, spec.lora.modules_to_save) == (FEW, ["lm_head"])
    again = made(spec.lora)
    same_logits(first.eval(), again.eval())
    none = tmp_path / "none"
    assert start_of(spec.lora, none) != start_of(lora(), none) == ""
    before = [each.detach().clone() for each in trained(again)]
    steps(again, 1)
    assert all((one != other).any() for one, other in zip(before, trained(again), strict=True))


def test_what_contradicts_the_adapter_or_is_none_is_said_before_anything_starts(tmp_path):
    folder = tmp_path / "adapter"
    export(made(lora()), folder)

    def mistake(*words: str) -> str:
        with pytest.raises(ConfigError) as caught:
            compose(["model=tiny", *words])
        return caught.value.problems[0]

    given = f"lora.from={folder}"
    assert mistake(given, "lora.rank=32") == "lora.rank=32: the adapter in lora.from has 8, and goes on with it"
    assert "lora.rank=8 cannot be shared evenly by kpool.n=3" in mistake(given, "kpool.n=3", "kpool.k=1")
    assert f"no such directory: {folder}x; did you mean {folder}?" in mistake(f"{given}x")
    (tmp_path / "empty").mkdir()
    assert "is no PEFT adapter: adapter_config.json cannot be read" in mistake(f"lora.from={tmp_path / 'empty'}")
    config = folder / "adapter_config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"peft_type": "LOHA"}))
    assert "is an adapter of type 'LOHA'" in mistake(given)
    config.write_text(json.dumps(whole | {"bias": "all"}))
    assert "uses bias, which a run has no setting for" in mistake(given)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    export(made(lora()), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="is no adapter of this model"):
        made(lora(target_modules=["q_proj"], from_adapter=str(tmp_path / "adapter")))


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=4)).eval()


def qwen3():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SMALL, num_hidden_layers=2, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=8
    )
    return Qwen3MoeForCausalLM(config).eval()


def deepseek():
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **SMALL, num_hidden_layers=2, moe_intermediate_size=16, n_routed_experts=4, n_shared_experts=1, n_group=1,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config).eval()


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def changes_of_weights(model) -> dict[str, torch.Tensor]:
    """What the LoRA adds to each weight."""
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", [mixtral, qwen3, deepseek])
@pytest.mark.parametrize("modules", ["all-linear", "o_proj"])
def test_the_adapters_of_stacked_experts_add_up_to_the_whole(tmp_path, base, modules):
    parameters = EXPERTS if modules == "o_proj" else None
    settings = lora(target_modules=[modules] if parameters else modules, target_parameters=parameters, init=False)
    model = made(settings, base)
    stacked = [each for each in model.modules() if getattr(each, "num_experts", 1) > 1 and hasattr(each, "lora_A")]
    assert stacked, "experts take part"
    pool = AdapterPool(model, N)
    values = pool.read(range(N))
    whole = changes_of_weights(model)
    sums = {name: torch.zeros_like(change) for name, change in whole.items()}
    for adapter in range(N):
        alone = torch.zeros_like(values)
        alone[adapter] = values[adapter]
        pool.write(alone)
        one = changes_of_weights(model)
        # One adapter is a LoRA of its own: in every expert its change has no more than its share of the rank.
        assert all(torch.linalg.matrix_rank(one[name]).max() <= rank_of(model, name) // N for name in one)
        sums = {name: sums[name] + change for name, change in one.items()}
    pool.write(values)
    for name, change in whole.items():
        torch.testing.assert_close(sums[name], change, atol=1e-5, rtol=1e-4)
    steps(model, 2)
    same_logits(model, round_trip(model, tmp_path / "adapter", base))


def rank_of(model, name: str) -> int:
    return model.get_submodule(name).r["default"]


def mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2)).eval()


@pytest.mark.filterwarnings("ignore")
def test_a_state_space_model_has_its_own_list_of_modules(tmp_path):
    model = made(lora(target_modules="all-linear"), mamba)
    assert {name.rpartition(".")[2] for name in changes_of_weights(model)} == {"in_proj", "x_proj"}
    steps(model, 2)
    same_logits(model, round_trip(model, tmp_path / "adapter", mamba))
    with pytest.raises(ConfigError, match="dt_proj of mamba takes no LoRA; in_proj, x_proj, embeddings do"):
        made(lora(target_modules=["in_proj", "dt_proj"]), mamba)


def test_what_peft_refuses_is_said_in_one_line():
    with pytest.raises(ConfigError, match=r"lora: Target modules .*'no_such'.* not found in the base model"):
        made(lora(target_modules=["no_such"]))
