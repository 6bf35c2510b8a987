"""Media files to patches: pictures here, sound in `decode_audio`, film in `decode_video`.

    decode_part(part, root, config) -> DecodedImage | DecodedAudio | DecodedVideo

These functions read files that may be broken or hostile, through libraries written in C that may hang or crash on
them. They are therefore meant to run in the processes of `data.decode_server`, which can be killed; they bound what
they can themselves (header sizes before pixels, declared seconds before samples).

Pictures (Pillow): first frame; EXIF orientation applied; palettes resolved; alpha laid over white; 16 bits reduced
to 8 by their high byte; CMYK and grey turned to RGB by the plain formulas (colour profiles and gamma are left alone).
A file that lacks its end is refused (`data.decode_whole`). A picture within its token budget is never resampled: it is
padded at the right and lower edge by repeating its last column and row, which leaves flat background flat. One
over the budget is scaled by torch's antialiased bicubic, its aspect kept: the same arithmetic as Pillow's in a seventh
of the time, and the only thing here that needs torch. Patches are p x p x 3 in
raster order, rows of pixels inside a patch, channels last.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from data.archive import open_media
from data.config import EncodeConfig
from data.decode_whole import check_whole
from data.document import Audio, DocumentError, Image, Part, Video
from data.lengths import VideoLayout, image_size
from data.signatures import why_not

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
"""Formats Pillow may try; those that start other programs (EPS) or fetch files are left out."""
_TIFF_PHOTOMETRIC = 262


@dataclass(frozen=True)
class DecodedImage:
    """A picture as patches."""

    grid: tuple[int, int]
    """Patch rows and columns."""
    patches: np.ndarray
    """(rows * cols, image_dim) uint8."""


@dataclass(frozen=True)
class DecodedAudio:
    """A sound as mel tokens."""

    tokens: np.ndarray
    """(n, audio_dim) float16 in about [-1, 1]."""


@dataclass(frozen=True)
class DecodedVideo:
    """A video as tubelet patches, with its sound track as mel tokens."""

    layout: VideoLayout
    patches: np.ndarray
    """(tubelets * rows * cols, video_dim) uint8; frames of a tubelet one after the other inside a patch."""
    sound: np.ndarray
    """(layout.num_sound, audio_dim) float16; no rows for a silent video."""


Decoded = DecodedImage | DecodedAudio | DecodedVideo


def decode_part(part: Part, root: Path, config: EncodeConfig) -> Decoded:
    """Decode the file of a media part below `root` (resolved), which may lie inside a tar or a table.

    Raises DocumentError with file and reason.
    """
    try:
        with open_media(root, part.path, max_file_mib=config.max_file_mib) as path:
            return _decode_file(part, path, config)
    except DocumentError as error:
        reason = str(error)
        raise DocumentError(reason if repr(part.path) in reason else f"file {part.path!r}: {reason}") from None
    except MemoryError:
        raise DocumentError(f"file {part.path!r}: needs more memory than a decoder may have") from None


def _decode_file(part: Part, path: Path, config: EncodeConfig) -> Decoded:
    if isinstance(part, Image):
        return decode_image(path, config)
    if isinstance(part, Audio):
        from data.decode_audio import decode_audio

        return DecodedAudio(decode_audio(path, config))
    if isinstance(part, Video):
        from data.decode_video import decode_video

        return DecodedVideo(*decode_video(path, config, sound=part.sound))
    raise TypeError(f"{type(part).__name__} is not a media part")


def decode_image(path: Path, config: EncodeConfig) -> DecodedImage:
    """Patches of a picture file. Raises DocumentError when it is not a whole picture of bearable size."""
    try:
        with warnings.catch_warnings():
            # our own bound on pixels is stricter than the library's warning
            warnings.simplefilter("ignore")
            with Pillow.open(path, formats=PICTURE_FORMATS) as picture:
                width, height = picture.size
                if width * height > config.max_pixels:
                    raise DocumentError(
                        f"picture of {width} x {height} pixels is over max_pixels={config.max_pixels}; scale it down"
                    )
                pixels = to_rgb(picture)
        check_whole(path)
    except (DocumentError, MemoryError):
        raise
    except Pillow.DecompressionBombError as error:
        raise DocumentError(f"picture is far over max_pixels={config.max_pixels}; scale it down ({error})") from None
    except Pillow.UnidentifiedImageError:
        formats, why = ", ".join(PICTURE_FORMATS), why_not(path, Image)
        if why.startswith(";"):
            # a cut picture may not even be recognised
            check_whole(path)
        raise DocumentError(f"not a picture of a known format ({formats}){why}") from None
    # Pillow's format readers raise whatever their parsers trip over
    except Exception as error:
        raise DocumentError(f"broken picture ({type(error).__name__}: {str(error)[:200]})") from None
    fitted = fit(np.asarray(pixels), config, config.max_image_tokens)
    return DecodedImage(grid_of(fitted, config), patchify(fitted, config.patch_size))


def to_rgb(picture: Pillow.Image) -> Pillow.Image:
    """First frame of an opened picture as upright 8-bit RGB, transparency over white."""
    clear = _clear_color(picture)
    inverted = picture.mode == "I;16" and getattr(picture, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_8_bit(picture, clear, inverted=inverted)
    elif clear is not None:
        picture.info["transparency"] = clear
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(ground, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _clear_color(picture: Pillow.Image):
    """The one colour of a PNG that is transparent, on the scale of the decoded pixels; None without one.

    The file states it in its own bits: of 2 and 4 where pixels come out stretched to 8, of 16 where colours come out
    as their high bytes. Pillow compares the numbers as they stand and so would miss it.
    """
    clear = picture.info.get("transparency")
    if isinstance(clear, int) and (picture.format, picture.mode) == ("PNG", "L") and picture.tile:
        return clear * {"L;2": 85, "L;4": 17}.get(picture.tile[0][3], 1)
    if isinstance(clear, tuple) and max(clear) > 255:
        return tuple(value >> 8 for value in clear)
    return clear


def _to_8_bit(picture: Pillow.Image, clear: int | None, *, inverted: bool) -> Pillow.Image:
    """Grey of more than 8 bits as 8: high byte of 16-bit integers, [0, 1] or [0, 255] floats by their maximum.

    `clear` is the 16-bit value that is transparent; `inverted` says that 0 is white.
    """
    values = np.asarray(picture)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DocumentError("picture holds values that are not finite")
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
    if below or right:
        pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
    return pixels


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 scaled by antialiased bicubic, in whole numbers: the same bytes on every processor."""
    import torch

    with warnings.catch_warnings():
        # pixels may be read-only; nothing writes to them
        warnings.simplefilter("ignore")
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(scaled[0].permute(1, 2, 0).numpy())


def grid_of(pixels: np.ndarray, config: EncodeConfig) -> tuple[int, int]:
    """Patch rows and columns of pixels (..., H, W, 3)."""
    return pixels.shape[-3] // config.patch_size, pixels.shape[-2] // config.patch_size


def patchify(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """(H, W, 3) pixels to (H/p * W/p, p * p * 3) patches in raster order."""
    rows, cols = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    patches = pixels.reshape(rows, patch_size, cols, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(patches).reshape(rows * cols, patch_size * patch_size * 3)
