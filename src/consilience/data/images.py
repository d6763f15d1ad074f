"""Photographs: decoded whatever their format and state, made into a model's input, and shown again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError, choose, need, printable
from .files import check_file

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PIXELS = 2**26
"""The most pixels (width × height, 67 million) that :func:`read_image` decodes; the header says how many there are."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of files that count as pictures of a folder."""

_SAMPLES = {
    "coffee": "coffee.png",
    "chelsea": "chelsea.png",
    "astronaut": "astronaut.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "camera": "camera.png",
}


_LONGEST = 16
"""A picture that is longer than so many times its short side is cut: a centre crop needs far less."""

# Raster formats that Pillow decodes by itself. EPS is left out on purpose: for it Pillow starts another program.
_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded photograph.

    Args:
        name: for people; characters of a file's name that cannot be shown are escapes.
        pixels: uint8 (H, W, 3), sRGB as stored.
        source: where it comes from, for people.
        size: (width, height), taken from ``pixels``.
    """

    name: str
    pixels: np.ndarray
    source: str
    size: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or not self.pixels.size:
            raise InputError(
                f"pixels: expected a uint8 array of shape (H, W, 3) with H, W ≥ 1, "
                f"got {self.pixels.dtype} {self.pixels.shape}"
            )
        object.__setattr__(self, "size", (self.pixels.shape[1], self.pixels.shape[0]))


def samples() -> list[str]:
    """Names of the photographs that the installed scikit-image carries in its package; nothing is downloaded.

    >>> samples()
    ['coffee', 'chelsea', 'astronaut', 'rocket', 'motorcycle', 'camera']
    """
    folder = _sample_folder()
    return [name for name, file in _SAMPLES.items() if (folder / file).is_file()]


def expand(images: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Replace, in ``images``, "sample" by "sample:NAME" for every packaged photograph, and a folder by its pictures, by name.

    >>> expand(["cat.jpg", "sample"])[:2]
    ['cat.jpg', 'sample:coffee']
    """
    names: list[str] = []
    for image in images:
        if image == "sample":
            names += [f"sample:{name}" for name in samples()]
        elif os.path.isdir(image):
            inside = sorted(entry.path for entry in os.scandir(image) if entry.name.lower().endswith(SUFFIXES))
            if not inside:
                raise InputError(f"{os.fspath(image)}: no pictures in this folder ({', '.join(SUFFIXES)})")
            names += inside
        else:
            names.append(os.fspath(image))
    return names


def read_image(path_or_sample: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a photograph, from a file or, as ``sample:NAME``, from those packaged with scikit-image.

    Grey, CMYK and palette images become RGB (colour profiles are not applied); 16-bit samples are scaled, v/257, and
    floats in [0, 1] are too; EXIF rotation is applied; transparent pixels are laid over white; of an animation the
    first frame is taken. A file whose header announces more than ``max_pixels`` is refused before it is decoded.

    Args:
        path_or_sample: of a file, or "sample:NAME".
        max_pixels: width × height of the largest picture that is decoded.

    Raises:
        InputError: for what is missing, a folder, empty, not an image, truncated, of zero size or too large.

    >>> read_image("sample:chelsea").size
    (451, 300)
    """
    text = os.fspath(path_or_sample)
    if text == "sample":
        raise InputError("image 'sample' stands for several photographs; pass sample:NAME, or expand() the list first")
    if text.startswith("sample:"):
        name = choose("sample photograph", text.removeprefix("sample:"), samples())
        return Picture(name, _decode(_sample_folder() / _SAMPLES[name], max_pixels), f"scikit-image {_SAMPLES[name]}")
    # A name can hold anything, and goes to files, pages and terminals from here.
    return Picture(printable(Path(text).stem), _decode(Path(text), max_pixels), printable(text))


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input: short side to ``resize``, centre ``crop``, x = (pixel/255 − mean)/std.

    Equals torchvision's ``Resize`` and ``CenterCrop`` on the Pillow image, except that a strip longer than 16 : 1 is cut to
    its middle 16 : 1 first.

    Args:
        resize: of the short side, pixels.
        crop: side of the square that is cut out of the middle, pixels.
        mean: of the channels, in units of 0 … 1.
        std: of the channels, in units of 0 … 1.
        interpolation: one of Pillow's filters, which smooth when they shrink: "nearest", "box", "bilinear", "hamming",
            "bicubic", "lanczos".

    Raises:
        InputError: a crop larger than the picture, or a standard deviation that is not positive.

    >>> Preprocess(resize=256, crop=224)(read_image("sample:coffee")).shape
    torch.Size([3, 224, 224])
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise InputError(f"crop={self.crop} must be at least 1 and at most resize={self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"mean and std are three numbers each, std positive; got mean={self.mean}, std={self.std}")
        choose("interpolation", self.interpolation, ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the model's input."""
        return (self.crop, self.crop)

    def __call__(self, picture: Picture) -> torch.Tensor:
        """The model's input of a ``picture``, (3, crop, crop), float32."""
        image_module = need("PIL.Image", "images")
        image = image_module.fromarray(picture.pixels)
        width, height = image.size
        short = min(width, height)
        longest = _LONGEST * short
        # A strip of 1 × 60 000 pixels would grow to 256 × 15 million.
        if max(width, height) > longest:
            half_wide = min(width, longest) / 2
            half_high = min(height, longest) / 2
            box = (width / 2 - half_wide, height / 2 - half_high, width / 2 + half_wide, height / 2 + half_high)
            image = image.crop(tuple(int(edge) for edge in box))
            width, height = image.size
        # The same integers as torchvision: the long side is cut down, the crop's corner rounded.
        wide = int(self.resize * width / short)
        high = int(self.resize * height / short)
        image = image.resize((wide, high), getattr(image_module.Resampling, self.interpolation.upper()))
        left = round((wide - self.crop) / 2)
        top = round((high - self.crop) / 2)
        array = np.array(image.crop((left, top, left + self.crop, top + self.crop)))
        x = torch.from_numpy(array).permute(2, 0, 1).to(torch.float32) / 255
        return ((x - _channels(self.mean)) / _channels(self.std)).contiguous()

    def display(self, x: torch.Tensor) -> np.ndarray:
        """Undo the normalisation: ``x`` (3, H, W) to an array (H, W, 3), float32, clipped to [0, 1]."""
        if x.ndim != 3 or x.shape[0] != 3:
            raise InputError(f"x: expected one image of shape (3, H, W), got {tuple(x.shape)}")
        x = x.detach().to("cpu", torch.float32)
        return (x * _channels(self.std) + _channels(self.mean)).clamp(0, 1).permute(1, 2, 0).contiguous().numpy()


def _channels(values: tuple[float, float, float]) -> torch.Tensor:
    """(3, 1, 1): one number for each channel."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _sample_folder() -> Path:
    """Where scikit-image keeps its photographs."""
    return Path(need("skimage", "images").__path__[0]) / "data"


def _decode(path: Path, max_pixels: int) -> np.ndarray:
    """Decode ``path`` to uint8 (H, W, 3). Whatever a decoder raises on a broken file becomes one InputError."""
    image_module = need("PIL.Image", "images")
    check_file(path, "image")
    image_module.init()
    formats = [name for name in _FORMATS if name in image_module.OPEN]
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            # Our own limit follows, whatever the process-wide one of Pillow is set to.
            warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
            with image_module.open(stream, formats=formats) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise InputError(
                        f"image {str(path)!r} announces {width} × {height} pixels, more than the limit of "
                        f"{max_pixels}: a decompression bomb? Scale it down, or raise max_pixels"
                    )
                if width < 1 or height < 1:
                    raise InputError(f"image {str(path)!r} has zero size ({width} × {height} pixels)")
                image.load()
                return _to_rgb(_upright(image), path)
    except InputError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise InputError(
            f"image {str(path)!r} is not an image in a known format, or its header is damaged; "
            f"known: {', '.join(formats)}"
        ) from error
    except image_module.DecompressionBombError as error:
        raise InputError(f"image {str(path)!r} is too large: {error}") from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise InputError(
            f"image {str(path)!r} cannot be decoded ({type(error).__name__}: {error}): truncated or damaged?"
        ) from error


def _upright(image: Image) -> Image:
    """Turn the image as its EXIF orientation says; a damaged EXIF block leaves it as it is."""
    try:
        return need("PIL.ImageOps", "images").exif_transpose(image)
    except Exception:  # the pixels are decoded already, and good without the metadata
        return image


def _to_rgb(image: Image, path: Path) -> np.ndarray:
    """Any mode of Pillow's to uint8 (H, W, 3)."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        # Pillow would clip these modes at 255 when it converts them. A 16-bit PNG has mode "I" in some of its releases.
        if image.mode == "F":
            kind = "float"
            white = 1.0
        else:
            kind = "integer"
            white = 65535.0
        low = float(values.min())
        high = float(values.max())
        if not (low >= 0 and high <= white):
            raise InputError(
                f"image {str(path)!r} has {kind} samples from {low:g} to "
                f"{high:g}, so what is white is unknown (expected 0 to {white:g}); save it with 8 or 16 bits per sample"
            )
        grey = np.rint(values * (255 / white)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "La":  # premultiplied grey, which converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image_module = need("PIL.Image", "images")
        white_page: Any = image_module.new("RGBA", image.size, "white")
        image = image_module.alpha_composite(white_page, image)
    return np.array(image.convert("RGB"))
