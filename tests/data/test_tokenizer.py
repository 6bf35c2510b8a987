"""The tokenizer: round trips, special tokens that text cannot spell, equal training."""

import pickle

import pytest

from brine.data.config import EncodeConfig
from brine.data.tokenizer import (
    EOS_ID,
    MEDIA_END_ID,
    MEDIA_TOKEN_ID,
    MIN_VOCAB_SIZE,
    PAD_ID,
    SPECIAL_TOKENS,
    Tokenizer,
    train_tokenizer,
)

HOSTILE = "".join(SPECIAL_TOKENS) + " <|image|> é 漢字 🎉 \x00\x01\t\n\r\n   end"


@pytest.mark.parametrize("vocab_size", [MIN_VOCAB_SIZE, 300, 512])
def test_round_trip(vocab_size):
    tokenizer = train_tokenizer([HOSTILE * 50, "def f(x): return x\n" * 50], vocab_size)
    ids = tokenizer.encode(HOSTILE)
    assert tokenizer.decode(ids) == HOSTILE
    assert b"".join(map(tokenizer.token_bytes, ids)) == HOSTILE.encode()
    assert min(ids) >= len(SPECIAL_TOKENS) and max(ids) < tokenizer.vocab_size <= vocab_size


def test_text_never_spells_a_special_token():
    """Learnt from nothing but the special tokens' names, and still no text gives their ids."""
    tokenizer = train_tokenizer([" ".join(SPECIAL_TOKENS) * 500, "".join(SPECIAL_TOKENS) * 500], 400)
    for name in SPECIAL_TOKENS:
        assert min(tokenizer.encode(name + name)) >= len(SPECIAL_TOKENS)


def test_ids_are_named(tokenizer):
    assert (SPECIAL_TOKENS[PAD_ID], SPECIAL_TOKENS[EOS_ID]) == ("<|pad|>", "<|end|>")
    assert SPECIAL_TOKENS[MEDIA_TOKEN_ID["image"]] == "<|image|>" and MEDIA_END_ID["video"] == len(SPECIAL_TOKENS) - 1
    assert tokenizer.decode([EOS_ID, PAD_ID]) == ""


def test_save_load_and_equal_training(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_str() == tokenizer.to_str() == pickle.loads(pickle.dumps(tokenizer)).to_str()
    assert train_tokenizer(["abc abd"] * 9, 280).to_str() == train_tokenizer(["abc abd"] * 9, 280).to_str()


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="too small"):
        train_tokenizer(["a"], MIN_VOCAB_SIZE - 1)
    with pytest.raises(ValueError, match=r"missing\.json cannot be read"):
        Tokenizer.load(tmp_path / "missing.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"patch_size": 0}, "patch_size must be a whole number above 0"),
        ({"patch_size": 15.5}, "patch_size"),
        ({"sample_rate": 44100}, "multiple of 400"),
        ({"video_fps": "2"}, "video_fps must be a number above 0"),
        ({"max_video_tokens": 8}, "max_video_tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_encode_config_says_what_is_wrong(fields, words):
    with pytest.raises(ValueError, match=words):
        EncodeConfig(**fields)


def test_encode_config_json():
    config = EncodeConfig(mel_bins=40)
    assert EncodeConfig.from_dict(config.to_dict()) == config
    assert config.digest() != EncodeConfig().digest()
    assert config.dims == {"image": 768, "audio": 160, "video": 1536}
    with pytest.raises(ValueError, match="unknown EncodeConfig field 'colour'"):
        EncodeConfig.from_dict({"colour": 1})
