from __future__ import annotations

import numpy as np
import pytest
import torch

from cardiac.run.presets import PRESETS
from study.data.frame import DataError
from study.methods.network import Network
from study.run.memory import memory_advice, ran_out_of_memory

FAILURES = {
    "CUDA": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA itself": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_running_out_of_memory_is_one_line_that_names_settings(failure: str) -> None:
    with pytest.raises(DataError) as error, memory_advice(PRESETS["paper"], torch.device("cpu")):
        raise FAILURES[failure]
    message = str(error.value)
    assert message.startswith("--batch-size 20 was too much for the memory of cpu")
    assert all(flag in message for flag in ("lower --batch-size", "--width", "--image-size", "--halve", "--precision"))
    assert "\n" not in message


def test_the_width_is_only_advised_for_the_network_that_has_one() -> None:
    network = Network("smp:Unet:resnet34")
    with pytest.raises(DataError) as error, memory_advice(PRESETS["paper"], torch.device("cpu"), network):
        raise MemoryError
    assert "--width" not in str(error.value)
    assert "--model" in str(error.value)


def test_what_is_set_already_is_not_advised() -> None:
    with pytest.raises(DataError) as error, memory_advice(PRESETS["quick"], torch.device("cpu")):
        raise MemoryError
    assert "--halve" not in str(error.value)


@pytest.mark.parametrize("failure", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_any_other_error_passes(failure: Exception) -> None:
    with pytest.raises(type(failure)) as error, memory_advice(PRESETS["paper"], torch.device("cpu")):
        raise failure
    assert error.value is failure


def test_what_the_libraries_raise_is_recognised() -> None:
    for ask in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            ask()
        assert ran_out_of_memory(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_full_gpu_is_named() -> None:
    device = torch.zeros(1, device="cuda").device
    with pytest.raises(DataError, match=torch.cuda.get_device_name(device)), memory_advice(PRESETS["paper"], device):
        torch.empty(2**50, dtype=torch.uint8, device=device)
