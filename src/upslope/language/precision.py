"""Which precision a policy's passes compute in, chosen by what the processor has instructions for; the same on every start."""

from __future__ import annotations

import torch


def preferred(device: torch.device | str) -> torch.dtype:
    """``bfloat16`` where this device multiplies matrices of it in hardware (AMX or AVX512-BF16, CUDA from Ampere on), else ``float32``."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and multiplies_bfloat16() else torch.float32


def multiplies_bfloat16() -> bool:
    """Whether this processor has AMX tiles or AVX512-BF16; PyTorch must know to ask, and use them."""
    asks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.backends.mkldnn.is_available() and any(ask is not None and bool(ask()) for ask in asks)
