"""What to do where there is not enough memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from study.data.frame import DataError
from study.methods.network import PAPERS, Network
from study.run.presets import Preset

_SIGNS = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")  # of torch, CUDA and MPS; the CPU; cuBLAS and cuDNN


@contextmanager
def memory_advice(preset: Preset, device: torch.device, network: Network | None = None) -> Iterator[None]:
    """Turn every way to run out of memory into one line that says which settings to lower.

    Raises:
        DataError: The device, or the host, has not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        lower = "--batch-size, --width or --image-size"
        if network is not None and network.name != PAPERS:
            lower = "--batch-size or --image-size, take a smaller --model"
        halve = ", or add --halve" if getattr(preset, "halve", None) is False else ""
        half = "" if preset.precision != "float32" else ", or add --precision bfloat16"
        raise DataError(
            f"--batch-size {preset.batch_size} was too much for the memory of {name}: lower "
            f"{lower}{halve}{half}. What is done is kept; once there is more memory, the same command goes on "
            "from it."
        ) from None


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was asked for and not there."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)
