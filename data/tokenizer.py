"""Byte-level BPE with eleven special tokens that no text can spell.

Special tokens take the first ids, in the order of `SPECIALS`, so that slot ids are constants of the code base and
do not depend on training. They stand in the BPE vocabulary as entries that no merge leads to, and are deliberately
not registered as the library's "added tokens": those are matched inside text, and a source file that contains the
characters `<|image|>` would then claim picture slots that do not exist. (The pre-tokeniser splits letters from
punctuation, so no learnt merge can spell one either.)

The 256 byte symbols follow, so every text round-trips; a vocabulary of 267 has no merges at all and is a plain
byte model. Saved as `tokenizer.json`, the file of the `tokenizers` package, readable by anything that reads those.
Train it on the training split only: that is the caller's part.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = (
    "<|pad|>",
    "<|end|>",
    "<|image_open|>",
    "<|image|>",
    "<|image_close|>",
    "<|audio_open|>",
    "<|audio|>",
    "<|audio_close|>",
    "<|video_open|>",
    "<|video|>",
    "<|video_close|>",
)
PAD_ID, END_ID = 0, 1
OPEN_ID = {"image": 2, "audio": 5, "video": 8}
SLOT_ID = {"image": 3, "audio": 6, "video": 9}
CLOSE_ID = {"image": 4, "audio": 7, "video": 10}
MIN_VOCAB = len(SPECIALS) + 256


def _printable_bytes() -> dict[str, int]:
    """The byte-level alphabet: the printable character that stands for each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(shifted)}


_BYTE_OF = _printable_bytes()


class Tokenizer:
    """Text to ids and back. Ids below `len(SPECIALS)` never come out of `encode`."""

    pad_id, end_id = PAD_ID, END_ID
    image_open_id, image_slot_id, image_close_id = OPEN_ID["image"], SLOT_ID["image"], CLOSE_ID["image"]
    audio_open_id, audio_slot_id, audio_close_id = OPEN_ID["audio"], SLOT_ID["audio"], CLOSE_ID["audio"]
    video_open_id, video_slot_id, video_close_id = OPEN_ID["video"], SLOT_ID["video"], CLOSE_ID["video"]

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner
        for number, name in enumerate(SPECIALS):
            if inner.token_to_id(name) != number:
                raise ValueError(
                    f"this tokenizer has no special token {name} at id {number}; train it with "
                    "data.tokenizer.train_tokenizer"
                )
        if inner.get_added_tokens_decoder():
            raise ValueError(
                "this tokenizer registers added tokens, which text could spell; train it with "
                "data.tokenizer.train_tokenizer"
            )
        self._bytes = [b""] * len(SPECIALS)
        for number in range(len(SPECIALS), self.vocab_size):
            self._bytes.append(bytes(_BYTE_OF[char] for char in inner.id_to_token(number)))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, never a special one, whatever the text spells."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for; empty for a special token. Ids out of the vocabulary raise IndexError."""
        return self._bytes[token]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens give nothing, broken UTF-8 gives the replacement character."""
        return b"".join(self._bytes[int(token)] for token in ids).decode("utf-8", errors="replace")

    def to_str(self) -> str:
        """The content of `tokenizer.json`; equal for equal tokenizers."""
        return self._inner.to_str(pretty=True)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`; a path that is a folder gets a file of that name."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        path.write_text(self.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` (or a folder that holds one). Raises ValueError when it is missing or another's."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls.from_str(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ValueError(f"tokenizer {path} cannot be read ({error.strerror}): build the corpus first") from None
        except ValueError as error:
            raise ValueError(f"tokenizer {path}: {error}") from None

    @classmethod
    def from_str(cls, content: str) -> "Tokenizer":
        """A tokenizer from what `to_str` gave; ValueError when it is not one."""
        try:
            inner = tokenizers.Tokenizer.from_str(content)
        # the package raises plain Exception for a file it cannot read
        except Exception as error:
            raise ValueError(f"not a tokenizer.json ({error})") from None
        return cls(inner)

    def __reduce__(self):
        return Tokenizer.from_str, (self.to_str(),)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE learnt from `texts` (training split only).

    The result has `vocab_size` ids, or fewer when the texts do not hold enough pairs to merge; read the true number
    from `.vocab_size`. Raises ValueError below 267 (11 special tokens and 256 bytes).
    """
    if vocab_size < MIN_VOCAB:
        raise ValueError(f"vocab_size={vocab_size} is too small: {MIN_VOCAB} ids are taken by special tokens and bytes")
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator(texts, trainer)
    return Tokenizer(_without_added_tokens(learner))


def _without_added_tokens(learner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same BPE with the special tokens left in the vocabulary but no longer matched in text."""
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    inner = tokenizers.Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner
