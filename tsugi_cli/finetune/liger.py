"""liger-kernel: fused kernels for a model that is loaded."""

from __future__ import annotations

from typing import Any

from tsugi_kpool.errors import EnvironmentError_


def fuse(base: Any) -> None:
    """Put its kernels into the model, in place.

    Raises:
        EnvironmentError_: the package is missing.
    """
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise EnvironmentError_("model.liger needs one more package: pip install 'tsugi[liger]'") from error
    # The loss is computed from logits at few columns: a fused loss inside of the model would never be called.
    _apply_liger_kernel_to_instance(model=base, fused_linear_cross_entropy=False)
