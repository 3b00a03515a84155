"""bitsandbytes, through transformers: the base in 4 or 8 bits."""

from __future__ import annotations

from typing import Any, Literal

PACKS = "support_avx512bf16_for_cpu"
"""By this attribute bitsandbytes' layers know that they may be packed."""


def keep_as_loaded(model: Any) -> None:
    """Keep a base in 4 bits as it was loaded, also on a CPU.

    With AVX-512 bitsandbytes packs weights anew when a model is first asked without a gradient: their scales become
    bfloat16, so that an evaluation would change the base that is trained on, and some shapes cannot be packed.
    """
    for module in model.modules():
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)


def quantisation(bits: Literal["none", "4bit", "8bit"], compute: Any) -> Any:
    """What `from_pretrained` takes as quantization_config.

    Args:
        bits: As `model.quantize` says.
        compute: The dtype that products are computed in.
    """
    from transformers import BitsAndBytesConfig

    if bits == "none":
        return None
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
