"""bitsandbytes, through transformers: the base in 4 or 8 bits."""

from __future__ import annotations

from typing import Any, Literal


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
