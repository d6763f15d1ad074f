"""Small pictures without a picture library: area-averaged resizing and PNG files as data URLs."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

# Numbers that the PNG format (ISO/IEC 15948) gives to kinds of colours and to filters of a row.
COLOUR = 2
PALETTE = 3
NO_FILTER = 0
PAETH = 4


def pool(values: np.ndarray, side: int, stretched: bool = False) -> np.ndarray:
    """A smaller picture, averaged over areas; never enlarged. NaNs are left out.

    Args:
        values: (H, W) or (H, W, C).
        side: at most so many pixels a side.
        stretched: shrink each side by itself, rather than keep the ratio of the sides.
    """
    height, width = values.shape[:2]
    down = min(1.0, side / height)
    across = min(1.0, side / width)
    if not stretched:
        down = across = min(down, across)
    rows = max(1, round(height * down))
    columns = max(1, round(width * across))
    if (rows, columns) == (height, width):
        return values
    of_rows = _shares(height, rows)
    of_columns = _shares(width, columns)
    known = np.isfinite(values)
    # The mean over the known part of each area: its sum divided by its size.
    weight = _averaged(known.astype(np.float64), of_rows, of_columns)
    total = _averaged(np.where(known, values, 0.0).astype(np.float64), of_rows, of_columns)
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)


def _averaged(values: np.ndarray, of_rows: np.ndarray, of_columns: np.ndarray) -> np.ndarray:
    """(H, W, …) → (rows, columns, …) by the shares of its rows and columns."""
    fewer_rows = np.tensordot(of_rows, values, (1, 0))
    return np.moveaxis(np.tensordot(of_columns, fewer_rows, (1, 1)), 0, 1)


def _shares(size: int, parts: int) -> np.ndarray:
    """(parts, size): the share of every pixel in every part; rows sum to 1."""
    edges = np.arange(parts + 1) * (size / parts)
    pixel = np.arange(size)
    # The length of the pixel [i, i + 1] that lies in the part between two edges; negative where they do not meet.
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.clip(overlap, 0, None) * (parts / size)


def indexed_png(levels: np.ndarray, rgba: np.ndarray) -> bytes:
    """A PNG file with a palette and transparency.

    Args:
        levels: (H, W), indices of colours.
        rgba: (n, 4) colours in 0…1, n ≤ 256.
    """
    table = np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)
    extra = [(b"PLTE", table[:, :3].tobytes()), (b"tRNS", table[:, 3].tobytes())]
    # Each row begins with the number of its filter.
    unfiltered = np.pad(levels.astype(np.uint8), ((0, 0), (1, 0)), constant_values=NO_FILTER)
    return _png(levels.shape, PALETTE, unfiltered, extra)


def photo_png(image: np.ndarray) -> bytes:
    """A PNG file of ``image`` (H, W, 3) in 0…1.

    Every row has the Paeth filter, which stores the difference between a pixel and what its neighbours predict:
    differences are small in photographs and compress better than the pixels.
    """
    pixels = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.int16)
    padded = np.pad(pixels, ((1, 0), (1, 0), (0, 0)))
    left = padded[1:, :-1]
    up = padded[:-1, 1:]
    corner = padded[:-1, :-1]
    # The prediction is the neighbour that is nearest to left + up − corner: of equally near ones left, then up. The distance
    # of left from that sum, for example, is |up − corner|.
    from_left = np.abs(up - corner)
    from_up = np.abs(left - corner)
    from_corner = np.abs(left + up - 2 * corner)
    is_left = (from_left <= from_up) & (from_left <= from_corner)
    up_or_corner = np.where(from_up <= from_corner, up, corner)
    predicted = np.where(is_left, left, up_or_corner)
    residual = ((pixels - predicted) % 256).astype(np.uint8).reshape(len(pixels), -1)
    filtered = np.pad(residual, ((0, 0), (1, 0)), constant_values=PAETH)
    return _png(pixels.shape[:2], COLOUR, filtered, [])


def _png(shape: tuple[int, ...], kind: int, rows: np.ndarray, extra: list[tuple[bytes, bytes]]) -> bytes:
    """A file of the header, ``extra`` chunks (name, body) and the pixels.

    Args:
        shape: (H, W).
        kind: of colours, :data:`COLOUR` or :data:`PALETTE`.
        rows: (H, 1 + bytes), filtered, the filter's number first.
        extra: further chunks, before the pixels.
    """
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    """One part of a PNG file: length, name, body, checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def data_url(png: bytes) -> str:
    """The content of a file ``png`` as the address of a picture, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
