"""Forward hooks that leave no trace, whenever the call is interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import nn


def attach(
    stack: contextlib.ExitStack,
    module: nn.Module,
    *,
    before: Callable | None = None,
    after: Callable | None = None,
) -> None:
    """Register hooks on a module until ``stack`` closes.

    The clean-up is registered first, and finds a hook by its identity: an interrupt between the two statements, or another
    thread's hooks on the same module, change nothing.

    Args:
        stack: takes the hooks away when it closes.
        module: any module.
        before: forward pre-hook (module, args) → None or new arguments.
        after: forward hook (module, args, output) → None or a new output; called after an exception too.
    """
    if before is not None:
        stack.callback(_detach, module, before)
        module.register_forward_pre_hook(before)
    if after is not None:
        stack.callback(_detach, module, after)
        module.register_forward_hook(after, always_call=True)


def _detach(module: nn.Module, hook: Callable) -> None:
    tables = (module._forward_pre_hooks, module._forward_hooks)
    numbers = [number for table in tables for number, known in list(table.items()) if known is hook]
    notes = (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
    for table in (*tables, *notes):
        for number in numbers:
            table.pop(number, None)
