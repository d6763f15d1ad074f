"""Who uses which modules: one thread at a time for each module, and never two threads that wait for each other.

A model is held together with all its submodules and parameters, at once or not at all, so that two models that share a
submodule exclude each other and two that share nothing do not. A thread may hold what it holds already.

Nested calls can still cross: thread 1 explains A and, inside a method of the caller's, B; thread 2 the other way round. Which
threads wait for which is known here, so the call that would close the circle raises an error instead of waiting forever.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from .undo import undoing


@dataclass(eq=False)
class Hold:
    """What one thread uses: ``parts``, the identities of modules and parameters, and the process's random state, which
    many may read (each puts it back) and which only one may draw from (``draws``)."""

    thread: int
    parts: frozenset[int]
    draws: bool

    def excludes(self, other: Hold) -> bool:
        if self.thread == other.thread:
            return False
        return self.draws or other.draws or not self.parts.isdisjoint(other.parts)


_condition = threading.Condition()
_holds: list[Hold] = []
_waiting: list[Hold] = []  # in the order in which they came


@contextlib.contextmanager
def held(parts: Iterable[nn.Module | nn.Parameter], draws: bool = False) -> Iterator[None]:
    """Inside, no other thread of this library uses any of these modules and parameters.

    Args:
        parts: the modules of a model with all submodules and parameters, as :func:`parts_of` lists them.
        draws: also keep every other thread of this library away from the process's random state.

    Raises:
        InputError: waiting would never end, because a thread that is waited for waits for this one.
    """
    hold = Hold(threading.get_ident(), frozenset(map(id, parts)), draws)
    with undoing(lambda: _release(hold)):
        _take(hold)
        yield


def parts_of(roots: Iterable[nn.Module]) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """(modules, parameters) of models, with all submodules, each once."""
    modules = dict.fromkeys(module for root in roots for module in root.modules())
    parameters: dict[nn.Parameter, None] = {}
    for module in modules:
        # A scripted module keeps its parameters elsewhere.
        scripted = isinstance(module, torch.jit.ScriptModule)
        own = module.parameters(recurse=False) if scripted else module._parameters.values()
        parameters.update((parameter, None) for parameter in own if parameter is not None)
    return list(modules), list(parameters)


def _take(hold: Hold) -> None:
    with _condition:
        _waiting.append(hold)
        while blocking := _blocking(hold):
            if _circular(hold.thread, blocking):
                raise InputError(
                    "model: two threads wait for each other's model: each explains, inside a method of its own, the model that "
                    "the other one is using; give one of them a copy.deepcopy(model)"
                )
            _condition.wait()
        _holds.append(hold)
        _waiting.remove(hold)


def _release(hold: Hold) -> None:
    """Let go, or stop waiting. A second time it does nothing."""
    with _condition:
        for holds in (_holds, _waiting):
            if hold in holds:
                holds.remove(hold)
        _condition.notify_all()


def _blocking(hold: Hold) -> set[int]:
    """The threads that ``hold`` has to wait for."""
    found = {other.thread for other in _holds if hold.excludes(other)}
    # First come, first served: else a thread that goes on at once to its next batch would keep the others out. A thread that
    # holds something must not queue, since those before it may be waiting for just that.
    if not any(other.thread == hold.thread for other in _holds):
        earlier = _waiting[: _waiting.index(hold)]
        found |= {other.thread for other in earlier if hold.excludes(other)}
    return found


def _circular(thread: int, blocking: set[int]) -> bool:
    """Whether one of the threads waits, by way of others or not, for ``thread``."""
    seen: set[int] = set()
    left = set(blocking)
    while left:
        current = left.pop()
        seen.add(current)
        for other in _waiting:
            if other.thread == current:
                left |= _blocking(other) - seen
    return thread in seen


def _forget() -> None:
    """In a forked process: the other threads, and whatever they held, are not there."""
    global _condition
    _condition = threading.Condition()
    thread = threading.get_ident()
    _holds[:] = [hold for hold in _holds if hold.thread == thread]
    _waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
