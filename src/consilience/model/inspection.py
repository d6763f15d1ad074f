"""What can be seen of a module before it runs: whether its operations are hidden, whether its weights are quantised."""

from __future__ import annotations

import torch
from torch import nn


def hidden(module: nn.Module) -> str:
    """Why the operations inside a module cannot be seen by a mode of torch functions; "" if they can.

    Args:
        module: itself only, not its submodules.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, whose operations cannot be seen"
    # There are three ways to compile: module.compile(), torch.compile(module.forward) and torch.compile(module).
    in_place = getattr(module, "_compiled_call_impl", None)
    forward = getattr(module.forward, "_torchdynamo_orig_callable", None)
    wrapped = type(module).__name__ == "OptimizedModule"
    if in_place or forward or wrapped:
        return "compiled, and its operations cannot be seen"
    return ""


def quantised(module: nn.Module) -> bool:
    """Whether a module's weights are packed integers: no gradient passes, and nothing can be written to them.

    Args:
        module: itself only, not its submodules.
    """
    # By name: there are many such classes, and they have moved from torch.nn to torch.ao.
    return "quantized" in type(module).__module__ and hasattr(module, "_packed_params")
