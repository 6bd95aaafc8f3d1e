"""Waits for an accelerator, noticed on any machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class NoSync(TorchDispatchMode):
    """Raises where an accelerator would have to answer before the program goes on."""

    ANSWERS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
    INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # waits where a mask is the index

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype == torch.bool] if func in self.INDEXING else []
        if func in self.ANSWERS or masks:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))
