"""Image files to patches, by Pillow.

First frame; EXIF orientation applied; palettes resolved; alpha over white; 16 bits reduced to their high byte; CMYK and
grey turned to RGB by the plain formulas (no colour profiles, no gamma). An image within its token budget is never
resampled but padded at the right and lower edge by repeating its last column and row. One over the budget is scaled by
torch's antialiased bicubic, aspect kept: Pillow's arithmetic in a seventh of the time. Patches are p x p x 3 in raster
order, channels last.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image as Pillow
from PIL import ImageOps

from brine.data.config import EncodeConfig
from brine.data.document import DocumentError, Image
from brine.data.files.signatures import format_mismatch_hint
from brine.data.lengths import image_size
from brine.data.media.completeness import check_complete

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
"""Formats Pillow may try; those that start other programs (EPS) or fetch files are left out."""
_TIFF_PHOTOMETRIC = 262


@dataclass(frozen=True)
class DecodedImage:
    """An image as patches."""

    grid: tuple[int, int]  # patch rows and columns
    patches: np.ndarray  # (rows * cols, image_dim) uint8


def decode_image(path: Path, config: EncodeConfig) -> DecodedImage:
    """Patches of an image file. Raises DocumentError when it is not a whole image within max_pixels."""
    try:
        with warnings.catch_warnings():
            # max_pixels is stricter than the library's warning
            warnings.simplefilter("ignore")
            with Pillow.open(path, formats=IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > config.max_pixels:
                    size = f"image of {width} x {height} pixels"
                    raise DocumentError(f"{size} is over max_pixels={config.max_pixels}; scale it down")
                pixels = to_rgb(image)
        check_complete(path)
    except (DocumentError, MemoryError):
        raise
    except Pillow.DecompressionBombError as error:
        raise DocumentError(f"image is far over max_pixels={config.max_pixels}; scale it down ({error})") from None
    except Pillow.UnidentifiedImageError:
        formats, why = ", ".join(IMAGE_FORMATS), format_mismatch_hint(path, Image)
        if why.startswith(";"):
            # a cut image may not even be recognised
            check_complete(path)
        raise DocumentError(f"not an image of a known format ({formats}){why}") from None
    # Pillow's format readers raise whatever their parsers trip over
    except Exception as error:
        raise DocumentError(f"broken image ({type(error).__name__}: {str(error)[:200]})") from None
    fitted = fit(np.asarray(pixels), config, config.max_image_tokens)
    return DecodedImage(grid_of(fitted, config), patchify(fitted, config.patch_size))


def to_rgb(image: Pillow.Image) -> Pillow.Image:
    """First frame of an opened image as upright 8-bit RGB, transparency over white."""
    clear = _clear_color(image)
    inverted = image.mode == "I;16" and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image, clear, inverted=inverted)
    elif clear is not None:
        image.info["transparency"] = clear
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _clear_color(image: Pillow.Image):
    """The one transparent colour of a PNG, on the scale of the decoded pixels; None without one.

    The file states it in its own bits, Pillow compares the numbers as they stand and so would miss it: pixels of 2 and
    4 bits come out stretched to 8, colours of 16 bits as their high bytes.
    """
    clear = image.info.get("transparency")
    if isinstance(clear, int) and (image.format, image.mode) == ("PNG", "L") and image.tile:
        return clear * {"L;2": 85, "L;4": 17}.get(image.tile[0][3], 1)
    if isinstance(clear, tuple) and max(clear) > 255:
        return tuple(value >> 8 for value in clear)
    return clear


def _to_8_bit(image: Pillow.Image, clear: int | None, *, inverted: bool) -> Pillow.Image:
    """Grey of more than 8 bits as 8: integers' high byte, floats by their maximum. clear: transparent value."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DocumentError("image holds values that are not finite")
        scaled = values * 255 if values.size and values.max() <= 1 else values
        return Pillow.fromarray(np.clip(np.round(scaled), 0, 255).astype(np.uint8))
    grey = (np.clip(values.astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    return Pillow.fromarray(grey if clear is None else np.where(values == clear, np.uint8(255), grey))


def fit(pixels: np.ndarray, config: EncodeConfig, max_tokens: int) -> np.ndarray:
    """(H, W, 3) uint8 to whole patches on both sides: padded when within the budget, resampled when not."""
    width, height, resampled = image_size(pixels.shape[1], pixels.shape[0], config.patch_size, max_tokens)
    if resampled and pixels.shape[:2] != (height, width):
        pixels = _resize(pixels, height, width)
    below, right = height - pixels.shape[0], width - pixels.shape[1]
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge") if below or right else pixels


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 scaled by antialiased bicubic, in whole numbers: bit-identical on every processor."""
    # torch is imported for images that must be scaled alone: servers start faster without it
    import torch

    with warnings.catch_warnings():
        # pixels may be read-only; nothing writes to them
        warnings.simplefilter("ignore")
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(scaled[0].permute(1, 2, 0).numpy())


def grid_of(pixels: np.ndarray, config: EncodeConfig) -> tuple[int, int]:
    """Patch rows and columns of (H, W, 3) pixels."""
    return pixels.shape[0] // config.patch_size, pixels.shape[1] // config.patch_size


def patchify(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """(H, W, 3) or a tubelet's (F, H, W, 3) pixels -> (H/p * W/p, [F *] p * p * 3) patches in raster order."""
    frames = pixels if pixels.ndim == 4 else pixels[None]
    return rearrange(frames, "f (r p) (c q) d -> (r c) (f p q d)", p=patch_size, q=patch_size)
