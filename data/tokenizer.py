"""Byte-level BPE with eleven special tokens that no text can spell.

Special tokens have the first ids, in the order of `SPECIAL_TOKENS`, so that media token ids are constants. They are in
the BPE vocabulary but no merge leads to them (the pre-tokenizer splits letters from punctuation), and they are not the
library's "added tokens", which are matched inside text: a source file with the characters `<|image|>` would claim
media. The 256 byte symbols follow, so every text round-trips; a vocabulary of 267 is a plain byte model.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|pad|>", "<|end|>",
    "<|image_open|>", "<|image|>", "<|image_close|>",
    "<|audio_open|>", "<|audio|>", "<|audio_close|>",
    "<|video_open|>", "<|video|>", "<|video_close|>",
)  # fmt: skip
PAD_ID, EOS_ID = 0, 1
MEDIA_START_ID = {"image": 2, "audio": 5, "video": 8}
MEDIA_TOKEN_ID = {"image": 3, "audio": 6, "video": 9}
MEDIA_END_ID = {"image": 4, "audio": 7, "video": 10}
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256


def _printable_bytes() -> dict[str, int]:
    """The byte-level alphabet: the printable character that stands for each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(shifted)}


_BYTE_OF = _printable_bytes()
_REMEDY = "train it with brine.data.tokenizer.train_tokenizer"


class Tokenizer:
    """Text to ids and back. Ids below `len(SPECIAL_TOKENS)` never come out of `encode`."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner
        for number, name in enumerate(SPECIAL_TOKENS):
            if inner.token_to_id(name) != number:
                raise ValueError(f"this tokenizer has no special token {name} at id {number}; {_REMEDY}")
        if inner.get_added_tokens_decoder():
            raise ValueError(f"this tokenizer registers added tokens, which text could spell; {_REMEDY}")
        self._bytes = [b""] * len(SPECIAL_TOKENS)
        for number in range(len(SPECIAL_TOKENS), self.vocab_size):
            self._bytes.append(bytes(_BYTE_OF[char] for char in inner.id_to_token(number)))

    @property
    def vocab_size(self) -> int:
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
        _file_in(path).write_text(self.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` (or a folder that holds one). Raises ValueError when it is missing or another's."""
        path = _file_in(path)
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


def _file_in(path: str | Path) -> Path:
    path = Path(path)
    return path / "tokenizer.json" if path.is_dir() else path


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` ids, or fewer for lack of pairs. ValueError below 267 (11 special, 256 bytes)."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {MIN_VOCAB_SIZE} ids are taken by special tokens and bytes"
        )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
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
