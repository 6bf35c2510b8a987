"""Brine: train a native-multimodal, long-context transformer from scratch, helped by a small model (SALT).

The packages (`brine.model`, `brine.data` ...) lie at the top of the repository. In an installed wheel they are here; in
a checkout, installed or not, the folder above is searched too.
"""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
# both files are there in a checkout alone
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "train.py").is_file():
    __path__.append(str(_ROOT))
