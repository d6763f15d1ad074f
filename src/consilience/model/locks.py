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
    """What one thread uses, or waits for.

    Two holds are equal only if they are the same object: a thread may hold the same things twice.

    Args:
        thread: its number.
        parts: the ids of modules and parameters.
        draws: whether it draws from the process's random state. Any number of threads may evaluate models that do not (each
            puts the state back), but one that draws is alone.
    """

    thread: int
    parts: frozenset[int]
    draws: bool

    def excludes(self, other: Hold) -> bool:
        """Whether the two cannot be in use at the same time.

        Args:
            other: another hold, of any thread.
        """
        if self.thread == other.thread:
            return False
        return self.draws or other.draws or not self.parts.isdisjoint(other.parts)


# One lock for the three of them: whoever reads or writes the lists has the condition, and waits at it.
_condition = threading.Condition()
_holds: list[Hold] = []
_waiting: list[Hold] = []  # in the order in which they came


@contextlib.contextmanager
def held(parts: Iterable[nn.Module | nn.Parameter], draws: bool = False) -> Iterator[None]:
    """Inside, no other thread of this library uses any of these modules and parameters.

    Args:
        parts: the modules of a model with all submodules and parameters, see :func:`modules_and_parameters`.
        draws: also keep every other thread of this library away from the process's random state.

    Raises:
        InputError: waiting would never end, because a thread that is waited for waits for this one.
    """
    hold = Hold(threading.get_ident(), frozenset(map(id, parts)), draws)
    # The release is registered before the hold is taken: an interrupt may come between the two, or while waiting.
    with undoing(lambda: _release(hold)):
        _take(hold)
        yield


def modules_and_parameters(roots: Iterable[nn.Module]) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """The modules of some models with all submodules, and their parameters, each once.

    Args:
        roots: the models, which may share submodules and parameters.
    """
    # Dictionaries as ordered sets: the order is that in which they are met.
    modules = dict.fromkeys(module for root in roots for module in root.modules())
    parameters: dict[nn.Parameter, None] = {}
    for module in modules:
        # The dictionary is several times as fast as the method; but a scripted module keeps its parameters elsewhere.
        scripted = isinstance(module, torch.jit.ScriptModule)
        own = module.parameters(recurse=False) if scripted else module._parameters.values()
        parameters.update((parameter, None) for parameter in own if parameter is not None)
    return list(modules), list(parameters)


def _take(hold: Hold) -> None:
    """Wait until nobody has what is wanted, then have it."""
    with _condition:
        _waiting.append(hold)
        while blocking := _blocking(hold):
            # Looked for anew each time: the circle may have been closed by a thread that came later.
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
        # All of them: each looks by itself whether it can go on.
        _condition.notify_all()


def _blocking(hold: Hold) -> set[int]:
    """The threads that ``hold`` has to wait for."""
    threads = {other.thread for other in _holds if hold.excludes(other)}
    # First come, first served: else a thread that goes on at once to its next batch would keep the others out. A thread that
    # holds something must not queue, since those before it may be waiting for just that.
    if not any(other.thread == hold.thread for other in _holds):
        earlier = _waiting[: _waiting.index(hold)]
        threads |= {other.thread for other in earlier if hold.excludes(other)}
    return threads


def _circular(thread: int, blocking: set[int]) -> bool:
    """Whether one of the threads ``blocking`` waits, by way of others or not, for ``thread``."""
    # All threads that are reached from `blocking` along "waits for".
    seen: set[int] = set()
    to_visit = set(blocking)
    while to_visit:
        current = to_visit.pop()
        seen.add(current)
        for other in _waiting:
            if other.thread == current:
                to_visit |= _blocking(other) - seen
    return thread in seen


def _forget_other_threads() -> None:
    """In a forked process: the other threads, and whatever they held, are not there."""
    global _condition
    # A new one: one of the other threads may have had the lock at the moment of the fork.
    _condition = threading.Condition()
    thread = threading.get_ident()
    _holds[:] = [hold for hold in _holds if hold.thread == thread]
    _waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
