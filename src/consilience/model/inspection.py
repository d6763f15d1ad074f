"""What can be told of a module by looking at it, before it runs."""

from __future__ import annotations

import torch
from torch import nn


def hidden(module: nn.Module) -> str:
    """Why the operations inside a ``module`` cannot be seen, or "" if they can."""
    # Compiled in place (module.compile()), by its forward (torch.compile(module.forward)), or wrapped (torch.compile(module)).
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, whose operations cannot be seen"
    call = getattr(module, "_compiled_call_impl", None)
    compiled = call or getattr(module.forward, "_torchdynamo_orig_callable", None)
    if compiled or type(module).__name__ == "OptimizedModule":
        return "compiled, and its operations cannot be seen"
    return ""


def quantised(module: nn.Module) -> bool:
    """Whether the weights of a ``module`` are packed integers: no gradient passes, and nothing can be written to them."""
    return "quantized" in type(module).__module__ and hasattr(module, "_packed_params")
