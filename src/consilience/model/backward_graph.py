"""Which tensors depend on the input, read from the autograd graph while a model runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class InputGraph:
    """The graph between the input and the tensors that a forward pass makes.

    The input is whatever requires a gradient and is not a parameter, or was computed before this object was made. Nodes are
    remembered, so that a forward pass of n operations visits each of them once.

    Attributes:
        made: graph nodes that came out of calls that were seen.
        frozen: tensors that depend on the input without a gradient (comparisons, indices, detached values), by id. They
            are held, so that no other tensor gets the id of one that is gone.
    """

    def __init__(self) -> None:
        self.made: set[Any] = set()
        self.frozen: dict[int, Tensor] = {}
        self._reaches_input: dict[Any, bool] = {}
        # Autograd numbers its nodes as they are made: what has a smaller number is older than this object. The number of now
        # is that of a node made here.
        with torch.enable_grad():
            newest = torch.zeros((), requires_grad=True).clone().grad_fn
        assert newest is not None
        self._start: int = newest._sequence_nr()

    def clear(self) -> None:
        """Forget all tensors and nodes."""
        self.made = set()
        self.frozen = {}
        self._reaches_input = {}

    def older(self, node: Any) -> bool:
        """Whether a graph ``node`` was made before this object."""
        return node._sequence_nr() < self._start

    def depends(self, tensor: Tensor) -> bool:
        """Whether a gradient can reach the input from ``tensor``: through a leaf other than a parameter, or an older graph."""
        if tensor.grad_fn is None:
            return tensor.requires_grad and not isinstance(tensor, nn.Parameter)
        # Depth first with a stack of our own: the graph of a deep network exceeds Python's limit of recursion.
        stack = [tensor.grad_fn]
        while stack:
            node = stack[-1]
            if node not in self._reaches_input:
                parents = [parent for parent, _ in node.next_functions if parent is not None]
                unknown = [parent for parent in parents if parent not in self._reaches_input]
                if unknown and not self.older(node):
                    stack += unknown
                    continue  # the node itself is decided when its parents are
                self._reaches_input[node] = self._node_depends(node, parents)
            stack.pop()
        return self._reaches_input[tensor.grad_fn]

    def _node_depends(self, node: Any, parents: list[Any]) -> bool:
        """Whether a node leads to the input, if all its parents are decided, or it is older than this object."""
        # A leaf's node, AccumulateGrad, has no parents and keeps the leaf as `variable`.
        leaf = None if parents else getattr(node, "variable", None)
        if leaf is not None:
            return not isinstance(leaf, nn.Parameter)
        return self.older(node) or any(self._reaches_input[parent] for parent in parents)

    def unseen(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` depends on the input but came out of no call that was seen."""
        node = tensor.grad_fn
        if node is None or node in self.made or self.older(node) or not self.depends(tensor):
            return False
        # An in-place write to a base gives its views new nodes, which no call returned.
        base = tensor._base if tensor._is_view() else None
        return base is None or base.grad_fn not in self.made

    def add(self, tensor: Tensor) -> None:
        """Remember ``tensor``, which came out of a call."""
        if tensor.grad_fn is not None:
            self.made.add(tensor.grad_fn)
            if tensor._is_view():
                assert tensor._base is not None
                self.made.add(tensor._base.grad_fn)
