"""Keyed random draws: every number is a function of (seed, stream, id, sample, position) and of nothing else.

The generator is Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011), written with
int64 tensor arithmetic so that it gives the same bits on every device. The 64-bit key is a hash of the seed and the
stream's name; the 128-bit counter is (position / 4, sample, id low, id high). Hence no result depends on batch size,
chunk, order or resuming, and the global random state is neither read nor changed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF

# Philox' own constants: its two multipliers, and what is added to the key's two words in each round.
_MUL = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

_FOLD = (0x636F6E73, 0x696C6965)
"""The key under which ids are folded: "cons", "ilie"."""


def philox(counter: Sequence[Tensor], key: tuple[int, int], rounds: int = 10) -> list[Tensor]:
    """Philox4x32: 128 bits of a counter and 64 bits of a key → 128 random bits.

    Args:
        counter: four int64 tensors of 32-bit words, which broadcast.
        key: two 32-bit words.
        rounds: ten pass all known tests; seven are the least that do.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # A product of two 32-bit words wraps in int64, but its bits are right: mask after the arithmetic shift.
        p0 = c0 * _MUL[0]
        p1 = c2 * _MUL[1]
        high_0 = (p0 >> 32).bitwise_and_(_MASK)
        high_1 = (p1 >> 32).bitwise_and_(_MASK)
        c0 = _xor(high_1, c1, k0)
        c2 = _xor(high_0, c3, k1)
        c1 = p1.bitwise_and_(_MASK)
        c3 = p0.bitwise_and_(_MASK)
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _xor(a: Tensor, b: Tensor, key: int) -> Tensor:
    """a ^ b ^ key, in place once the counters have their full shape: memory is what takes the time."""
    if a.shape == b.shape:
        return a.bitwise_xor_(b).bitwise_xor_(key)
    return a ^ b ^ key


@dataclass(frozen=True)
class Key:
    """A named stream of draws, e.g. ``Key(0, "fit")``; ``/`` names a sub-stream: ``Key(0, "fit") / "masks"``.

    Args:
        seed: any whole number.
        stream: the name, so that draws for different ends do not coincide.
    """

    seed: int
    stream: str = ""

    def __truediv__(self, name: str) -> Key:
        return Key(self.seed, f"{self.stream}/{name}")

    @property
    def words(self) -> tuple[int, int]:
        """The 64-bit key of Philox, a hash of the seed and the stream's name, as two words."""
        digest = hashlib.blake2b(f"{self.seed}:{self.stream}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def bits(self, ids: Tensor, sample: int | Tensor, count: int) -> Tensor:
        """(N, count) int64 words in [0, 2**32).

        Args:
            ids: (N,), the identity of each row.
            sample: the number of the draw, of all rows or (N,).
            count: words for each row.
        """
        ids = ids.to(torch.int64)
        if not isinstance(sample, Tensor):
            sample = torch.full_like(ids, sample)  # made on the device: no copy to wait for
        sample = sample.to(ids).expand_as(ids)
        # One counter gives four words: as many blocks as cover ``count``.
        block = torch.arange(-(-count // 4), device=ids.device)
        low = ids[:, None] & _MASK
        high = (ids[:, None] >> 32) & _MASK
        words = philox((block, sample[:, None] & _MASK, low, high), self.words)
        words = torch.broadcast_tensors(*words)
        return torch.stack(words, -1).flatten(1)[:, :count]

    def uniform(
        self, ids: Tensor, sample: int | Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(N, *shape) uniform on the open interval (0, 1): multiples of 2**-23 plus 2**-24, exact in float32.

        Args:
            ids: (N,), the identity of each row.
            sample: the number of the draw, of all rows or (N,).
            shape: of the numbers for each row.
            dtype: of the result; the numbers are those of float32 in any.
        """
        words = self.bits(ids, sample, math.prod(shape))
        # The upper 23 bits, in the middles of 2^23 equal steps: neither 0 nor 1, at which the inverse normal is infinite.
        uniform = (words >> 9).to(torch.float32) * 2**-23 + 2**-24
        return uniform.reshape(len(ids), *shape).to(dtype)

    def normal(
        self, ids: Tensor, sample: int | Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(N, *shape) standard normal, by inversion: √2 erf⁻¹(2u − 1); |z| ≤ 5.3.

        Args:
            ids: (N,), the identity of each row.
            sample: the number of the draw, of all rows or (N,).
            shape: of the numbers for each row.
            dtype: of the result; the numbers are those of float32 in any.
        """
        signed = self.uniform(ids, sample, shape).mul_(2).sub_(1)
        return signed.erfinv_().mul_(math.sqrt(2)).to(dtype)


def fold(ids: Tensor, data: Tensor) -> Tensor:
    """(N,) int64: new ids from ``ids`` (N,) and the non-negative integers ``data`` (N,), below 2^63.

    Independent streams for the same input, such as one for each training step; data 0 keeps the id.
    """
    ids = ids.to(torch.int64)
    data = data.to(torch.int64)
    counter = (ids & _MASK, (ids >> 32) & _MASK, data & _MASK, (data >> 32) & _MASK)
    low, high, _, _ = philox(counter, _FOLD)
    # 63 bits, so that an id is not negative.
    folded = low | ((high & 0x7FFFFFFF) << 32)
    return torch.where(data == 0, ids, folded)
