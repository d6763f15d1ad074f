"""Small pictures without a picture library: area-averaged resizing and PNG files as data URLs."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np


def pool(values: np.ndarray, side: int) -> np.ndarray:
    """(H, W) or (H, W, C), averaged over areas to at most ``side`` pixels a side; never enlarged. NaNs are left out."""
    height, width = values.shape[:2]
    scale = min(1.0, side / max(height, width))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    if (rows, columns) == (height, width):
        return values
    down, across = _shares(height, rows), _shares(width, columns)
    known = np.isfinite(values)

    def average(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.tensordot(across, np.tensordot(down, a, (1, 0)), (1, 1)), 0, 1)

    weight = average(known.astype(np.float64))
    total = average(np.where(known, values, 0.0).astype(np.float64))
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)


def _shares(size: int, parts: int) -> np.ndarray:
    """(parts, size): the share of every pixel in every part; rows sum to 1."""
    edges = np.arange(parts + 1) * (size / parts)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.clip(overlap, 0, None) * (parts / size)


def indexed_png(levels: np.ndarray, rgba: np.ndarray) -> bytes:
    """(H, W) indices and (n, 4) colours in 0…1 → a palette PNG with transparency."""
    table = np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)
    extra = [(b"PLTE", table[:, :3].tobytes()), (b"tRNS", table[:, 3].tobytes())]
    plain = np.pad(levels.astype(np.uint8), ((0, 0), (1, 0)))
    return _png(levels.shape, 3, plain, extra)


def photo_png(image: np.ndarray) -> bytes:
    """(H, W, 3) in 0…1 → a PNG, every row with the Paeth filter."""
    now = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.int16)
    padded = np.pad(now, ((1, 0), (1, 0), (0, 0)))
    left, up, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    a, b, c = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    guess = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
    rest = ((now - guess) % 256).astype(np.uint8).reshape(len(now), -1)
    return _png(now.shape[:2], 2, np.pad(rest, ((0, 0), (1, 0)), constant_values=4), [])


def _png(shape: tuple[int, ...], kind: int, rows: np.ndarray, extra: list[tuple[bytes, bytes]]) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
