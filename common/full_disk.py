"""Is an error that of a full disk, however a library words it?"""

from __future__ import annotations

import errno
import re

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room, a quota that is used up, a file that may not grow."""
_NUMBERS = "|".join(map(str, FULL_DISK))
_IN_WORDS = re.compile(rf"\[Errno ({_NUMBERS})\]|\(os error ({_NUMBERS})\)")
"""As Python and as Rust say it."""


def full_disk_number(error: BaseException) -> int | None:
    """The errno of a full disk that an error, or one that caused it, has or quotes; None where it is another error.

    Libraries that write in threads or ranks (checkpoints), or in Rust (safetensors), leave only the text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL_DISK:
            return seen.errno
        if found := _IN_WORDS.search(str(seen)):
            return int(found[1] or found[2])
        seen = seen.__cause__
    return None
