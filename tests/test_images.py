"""Reading photographs: every sort of file that works, every sort that must fail clearly, and the way back to pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consilience.data import images
from consilience.data.images import Picture, Preprocess, expand, read_image, samples
from consilience.errors import InputError


@pytest.fixture
def rgb() -> np.ndarray:
    """A smooth, asymmetric picture, (24, 36, 3) uint8."""
    y, x = np.mgrid[0:24, 0:36]
    return np.stack([x * 7, y * 10, 255 - x * 3 - y * 4], axis=2).astype(np.uint8)


def test_samples_are_packaged_and_read() -> None:
    assert samples() == ["coffee", "chelsea", "astronaut", "rocket", "motorcycle", "camera"]
    for name in samples():
        picture = read_image(f"sample:{name}")
        assert picture.name == name and "scikit-image" in picture.source
        assert picture.pixels.shape == (picture.size[1], picture.size[0], 3) and picture.pixels.std() > 10


def test_expand() -> None:
    assert expand(["a.png", "sample", "sample:camera"]) == [
        "a.png",
        *(f"sample:{n}" for n in samples()),
        "sample:camera",
    ]
    with pytest.raises(InputError, match="several"):
        read_image("sample")
    with pytest.raises(InputError, match="'coffee'"):
        read_image("sample:cofee")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a picture.{suffix}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if suffix == "webp" else {}))
    picture = read_image(path)
    assert picture.name == "a picture" and picture.source == str(path) and picture.size == (36, 24)
    assert np.array_equal(picture.pixels, rgb)


def test_grey_and_bilevel(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).convert("L").save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png").pixels
    assert np.array_equal(grey[..., 0], np.array(Image.fromarray(rgb).convert("L"))) and np.ptp(grey, axis=2).max() == 0
    Image.fromarray(rgb).convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png").pixels)) == {0, 255}


def test_cmyk_jpeg(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").pixels.astype(int) - rgb).mean() < 3


def test_palette(tmp_path: Path, rgb: np.ndarray) -> None:
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png").pixels, np.array(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 30, dtype=np.uint16).reshape(5, 6)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / f"deep.{suffix}").pixels[..., 1], expected)


def test_sixteen_bit_colour_png(tmp_path: Path) -> None:
    values = (np.arange(2 * 3 * 3).reshape(2, 3, 3) * 3500).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "deep.png").write_bytes(png(3, 2, depth=16, colour=2, data=rows))
    assert np.abs(read_image(tmp_path / "deep.png").pixels.astype(int) - values / 257).max() <= 1


def test_float_and_wide_integer_tiff(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "unit.tiff")
    assert np.array_equal(read_image(tmp_path / "unit.tiff").pixels[..., 0], np.rint(values * 255).astype(np.uint8))
    for name, bad in {"wide": values * 300, "nan": values * np.nan, "int": np.full((3, 4), 10**6, np.int32)}.items():
        Image.fromarray(bad).save(tmp_path / f"{name}.tiff")
        with pytest.raises(InputError, match="what is white is unknown"):
            read_image(tmp_path / f"{name}.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, rgb: np.ndarray, orientation: int) -> None:
    turns = {1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2)}
    turns |= {6: np.rot90(rgb, -1), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png").pixels, turns[orientation])


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    read = read_image(tmp_path / "alpha.png").pixels
    assert read[0, 0].tolist() == [10, 20, 30] and read[1, 1].tolist() == [255] * 3
    assert abs(int(read[0, 1, 0]) - 127) <= 1
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "grey_alpha.png")
    assert read_image(tmp_path / "grey_alpha.png").pixels[1, 1].tolist() == [255] * 3
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert read_image(tmp_path / "palette.gif").pixels[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"two.{suffix}", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / f"two.{suffix}").pixels[0, 0, 0] > 240


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG file written by hand, so that its header can say anything."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name → content and what the error must say."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = {}
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, kind)
        whole[kind] = stream.getvalue()
    table = {f"truncated_{kind}": (data[: len(data) // 2], "truncated|damaged") for kind, data in whole.items()}
    return table | {
        "header_only": (whole["PNG"][:40], "truncated|damaged"),
        "one_byte": (b"\x89", "not an image"),
        "flipped": (whole["PNG"][:60] + b"\0" * 200 + whole["PNG"][260:], "truncated|damaged"),
        "text": (b"This is a letter.", "not an image in a known format"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
        "empty": (b"", "empty"),
        "zero_width": (png(0, 5), "zero size|damaged"),
        "bomb": (png(50_000, 50_000), "limit of 67108864|too large"),
        "half_bomb": (png(10_000, 10_000), "100000000|10000 × 10000"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, message = bad_files()[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert name in str(caught.value)


def test_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no such file; did you mean 'holiday.jpg'"):
        read_image(tmp_path / "holliday.jpg")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)
    for odd in ("a\0b.png", "x" * 5000, "", str(tmp_path / "no" / "such" / "folder.png")):
        with pytest.raises(InputError):
            read_image(odd)


def test_limit_does_not_depend_on_pillows(
    tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="limit of 100"):
        read_image(tmp_path / "a.png", max_pixels=100)
    (tmp_path / "bomb.png").write_bytes(png(12_000, 12_000))
    for setting in (None, 10**12, Image.MAX_IMAGE_PIXELS):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", setting)
        with pytest.raises(InputError, match="decompression bomb"):
            read_image(tmp_path / "bomb.png")
        assert setting == Image.MAX_IMAGE_PIXELS
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_is_ignored(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert read_image(tmp_path / "a.jpg").size == (36, 24)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("shape", [(300, 451), (512, 512), (100, 37), (224, 225), (31, 480), (257, 256)])
def test_preprocess_equals_torchvision(shape: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    prepare = Preprocess(resize=64, crop=56, interpolation=interpolation)
    reference = transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(prepare.mean, prepare.std),
        ]
    )
    x = prepare(Picture("noise", pixels, "test"))
    assert x.shape == (3, 56, 56) and x.dtype == torch.float32 and x.is_contiguous()
    assert torch.allclose(x, reference(Image.fromarray(pixels)), atol=1e-6)


def test_preprocess_of_extreme_shapes() -> None:
    for shape in ((1, 1), (1, 60_000), (60_000, 1), (2, 3)):
        x = Preprocess()(Picture("strip", np.full((*shape, 3), 200, np.uint8), "test"))
        assert x.shape == (3, 224, 224) and x.isfinite().all()


def test_display_inverts_preprocess(rgb: np.ndarray) -> None:
    prepare = Preprocess(resize=24, crop=24)
    x = prepare(Picture("rgb", rgb, "test"))
    shown = prepare.display(x)
    assert shown.shape == (24, 24, 3) and shown.dtype == np.float32
    assert np.allclose(shown, rgb[:, 6:30] / 255, atol=1e-6)
    assert prepare.display(x + 100).max() == 1 and prepare.display(x - 100).min() == 0
    with pytest.raises(InputError, match="shape"):
        prepare.display(x[None])


def test_preprocess_refuses_nonsense() -> None:
    for settings in ({"crop": 300}, {"crop": 0}, {"std": (0.0, 1.0, 1.0)}, {"interpolation": "biliniar"}):
        with pytest.raises(InputError):
            Preprocess(**settings)
    for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="pixels"):
            Picture("bad", pixels, "test")


def test_nothing_heavy_is_imported_early() -> None:
    for module in ("PIL", "skimage", "timm", "torchvision"):
        assert module not in vars(images)
