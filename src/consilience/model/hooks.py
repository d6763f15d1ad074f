"""Forward hooks that leave no trace, whenever the call is interrupted, and that see no other thread's calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

Hooks = Sequence[tuple[nn.Module, Callable]]


@contextlib.contextmanager
def attached(before: Hooks = (), after: Hooks = ()) -> Iterator[None]:
    """Register hooks on leaving of which none is left, also after an interrupt inside the clean-up.

    Args:
        before: (module, forward pre-hook (module, args) → None or new arguments).
        after: (module, forward hook (module, args, output) → None or a new output); called after an exception too.
    """
    thread = threading.get_ident()
    first = [(module, _only_in(thread, hook)) for module, hook in before]
    last = [(module, _only_in(thread, hook)) for module, hook in after]
    try:
        for module, hook in first:
            module.register_forward_pre_hook(hook)
        for module, hook in last:
            module.register_forward_hook(hook, always_call=True)
        yield
    finally:
        try:
            _detach([*first, *last])
        except BaseException:
            _detach([*first, *last])  # an interrupt within the line above: what it left
            raise


def _only_in(thread: int, hook: Callable) -> Callable:
    """Another thread may run the same module meanwhile, and must neither be recorded nor changed."""

    def guarded(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    return guarded


def _detach(hooks: Hooks) -> None:
    """Hooks are found by their identity: nothing has to be remembered between registering and removing them."""
    for module, hook in hooks:
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
