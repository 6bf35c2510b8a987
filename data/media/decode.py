"""Media parts to arrays of patches: one function for images, audio and video.

Files may be broken or hostile, and the C libraries that read them may hang or crash. Use this in the processes of
`brine.data.media.server`, which can be killed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brine.data.config import EncodeConfig
from brine.data.document import Audio, DocumentError, Image, Part
from brine.data.files.archive import open_media
from brine.data.files.roots import MediaRoots
from brine.data.lengths import VideoLayout
from brine.data.media.images import DecodedImage, decode_image


@dataclass(frozen=True)
class DecodedAudio:
    """Audio as mel tokens."""

    tokens: np.ndarray  # (n, audio_dim) float16 in about [-1, 1]


@dataclass(frozen=True)
class DecodedVideo:
    """A video as tubelet patches, with its audio track as mel tokens."""

    layout: VideoLayout
    patches: np.ndarray
    """(tubelets * rows * cols, video_dim) uint8; frames of a tubelet one after the other inside a patch."""
    audio_tokens: np.ndarray  # (layout.num_audio_tokens, audio_dim) float16; empty for a silent video


Decoded = DecodedImage | DecodedAudio | DecodedVideo


def decode_part(part: Part, root: Path | MediaRoots, config: EncodeConfig) -> Decoded:
    """Decode a media part's file below `root` (resolved), also inside a tar or table. DocumentError with the reason."""
    try:
        with open_media(root, part.path, max_file_mib=config.max_file_mib) as path:
            if isinstance(part, Image):
                return decode_image(path, config)
            # torch and PyAV are loaded for the documents that need them
            if isinstance(part, Audio):
                from brine.data.media.audio import decode_audio

                return DecodedAudio(decode_audio(path, config))
            from brine.data.media.video import decode_video

            return DecodedVideo(*decode_video(path, config, use_audio=part.use_audio))
    except DocumentError as error:
        reason = str(error)
        raise DocumentError(reason if repr(part.path) in reason else f"file {part.path!r}: {reason}") from None
    except MemoryError:
        raise DocumentError(f"file {part.path!r}: needs more memory than a decoder may have") from None
