"""Loss per document, gains and partners, against a model whose loss is known on paper."""

import dataclasses
import math

import numpy as np
import pytest

from brine.data.sequence import MODALITY_CONTEXTS
from brine.evals.config import EvalConfig
from brine.evals.gain import (
    blank_media,
    choose_mismatched,
    drop_unmatched,
    gain_interval,
    mismatched_media,
    mix_weights,
    summarize_gain,
)
from brine.evals.loss import (
    choose_documents,
    held_out_split,
    loss_by_modality_context,
    loss_table,
    measure_losses,
    packed_batches,
    text_bits_per_byte,
    token_byte_lengths,
)
from brine.evals.transcribe import transcription_task_of
from brine.evals.validation import Validator

CONFIG = EvalConfig(seq_len=64, batch_size=2, bootstrap_resamples=200)


@pytest.fixture
def measured(known_model, tokenizer):
    """measured(corpus, documents, **more) -> DocumentLosses of the known model."""

    def run(corpus, documents=None, **more):
        documents = np.arange(corpus.num_documents) if documents is None else documents
        more.setdefault("config", CONFIG)
        return measure_losses(known_model, corpus, documents, token_bytes=token_byte_lengths(tokenizer), **more)

    return run


def test_every_target_is_measured_once_with_its_context(make_corpus, measured):
    corpus = make_corpus([("screenshot", 5, {}), ("text", 3, {"text": "plain words, no medium"}), ("narration", 4, {})])
    losses = measured(corpus)
    for number in range(corpus.num_documents):
        sequence = corpus.encoded_document(number)
        targets = sequence.loss_mask[1:]
        expected = np.bincount(sequence.modality_context[1:][targets], minlength=len(MODALITY_CONTEXTS))
        np.testing.assert_array_equal(losses.tokens[number], expected)
        # one byte a token, but for the end token
        assert losses.bytes[number].sum() == targets.sum() - 1
    pictures = losses.of_kind("screenshot")
    np.testing.assert_allclose(losses.loss[pictures], losses.tokens[pictures] * math.log(2), rtol=1e-5)
    text = losses.select(losses.of_kind("text"))
    assert text.mean() == pytest.approx(math.log(4), rel=1e-5)
    assert text_bits_per_byte(losses) == pytest.approx(2 * text.tokens.sum() / text.bytes.sum(), rel=1e-5)
    assert loss_by_modality_context(losses) == pytest.approx(
        {"none": math.log(4), "image": math.log(2), "audio": math.log(2)}
    )


def test_long_documents_are_cut_without_losing_or_doubling_a_target(make_corpus, measured):
    """A text of 300 tokens in rows of 64, and a medium longer than a row, which is given a row of its own."""
    corpus = make_corpus([("text", 1, {"text": "x" * 300}), ("screenshot", 1, {"text": "y" * 90})])
    losses = measured(corpus)
    assert losses.tokens.sum(axis=1).tolist() == [300, 91]
    short = EvalConfig(seq_len=4, batch_size=2)
    np.testing.assert_array_equal(measured(corpus, config=short).tokens, losses.tokens)


def test_a_long_document_is_not_read_for_every_chunk(make_corpus):
    """Its chunks were each sliced from a fresh read: 393 reads, each with a checksum, of one of 200,000 tokens."""
    corpus, reads = make_corpus([("text", 2, {"text": "x" * 3000})]), []

    def load_sequence(number):
        reads.append(number)
        return corpus.encoded_document(number)

    batches = list(packed_batches(load_sequence, corpus.num_tokens, seq_len=64, batch_size=2))
    assert len(batches) > 40
    assert len(reads) <= 6


def test_packing_changes_no_loss(make_corpus, measured):
    corpus = make_corpus([("screenshot", 7, {}), ("narration", 6, {}), ("recording", 5, {"sound": True})])
    alone = [measured(corpus, np.array([number])).loss[0] for number in range(corpus.num_documents)]
    for seq_len, rows in ((32, 1), (64, 3), (512, 2)):
        config = EvalConfig(seq_len=seq_len, batch_size=rows)
        np.testing.assert_allclose(measured(corpus, config=config).loss, alone, rtol=1e-6)


def test_rows_are_full_and_of_one_shape(make_corpus):
    corpus = make_corpus([("screenshot", 40, {})])
    rows = list(packed_batches(corpus.encoded_document, corpus.num_tokens, seq_len=64, batch_size=4))
    assert {tuple(batch.inputs.token_ids.shape) for batch in rows} == {(4, 64)}
    assert sum(int((batch.document >= 0).sum()) for batch in rows) == corpus.num_tokens.sum()
    used = sum(int((batch.document >= 0).any(dim=1).sum()) for batch in rows)
    assert used <= math.ceil(1.3 * corpus.num_tokens.sum() / 64)


@pytest.mark.parametrize(
    ("kind", "modality", "sound"),
    [("screenshot", "image", False), ("narration", "audio", False), ("recording", "video", True)],
)
def test_gain_is_what_the_model_was_made_to_have(make_corpus, measured, kind, modality, sound):
    corpus = make_corpus([(kind, 2, {"level": level, "sound": sound}) for level in range(1, 6)])
    documents = np.arange(corpus.num_documents)
    matched = measured(corpus)
    without = measured(corpus, transform=blank_media(modality))
    partners = choose_mismatched(corpus, documents, modality, seed=0)
    other = measured(corpus, transform=mismatched_media(corpus, partners, modality))
    result = summarize_gain(matched, without, drop_unmatched(other, partners), modality, CONFIG)
    assert result["gain"] == pytest.approx(0.5, rel=1e-5)
    assert result["low"] == pytest.approx(0.5, rel=1e-5) and result["high"] == pytest.approx(0.5, rel=1e-5)
    expected = {"matched": math.log(2), "blank": math.log(4), "mismatched": math.log(8)}
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert result["headline_kinds"] == [kind] and len(result["cells"]) == 5
    with pytest.raises(ValueError, match="same documents"):
        gain_interval(matched, without.select(documents[1:]), modality, CONFIG)


def test_gains_over_levels_weigh_them_as_the_training_mix(make_corpus, measured):
    """Six easy documents trained on for each hard one, as many of both held out, and a cell never trained on."""
    corpus = make_corpus([
        ("screenshot", 12, {"level": 1, "split": "train"}),
        ("screenshot", 2, {"level": 2, "split": "train"}),
        ("screenshot", 3, {"level": 1, "split": "test"}),
        ("screenshot", 3, {"level": 2, "split": "test"}),
        ("screenshot", 1, {"level": 3, "split": "test"}),
    ])  # fmt: skip
    held_out = np.arange(14, 21)
    weights = mix_weights(corpus, held_out)
    np.testing.assert_allclose(weights, np.array([12, 12, 12, 2, 2, 2, 0]) / 6, rtol=1e-12)
    np.testing.assert_array_equal(mix_weights(make_corpus([("screenshot", 3, {})]), np.arange(3)), 1)

    matched = measured(corpus, held_out)
    without = measured(corpus, held_out, transform=blank_media("image"))
    spoilt = matched.loss.copy()
    spoilt[3:] = without.loss[3:]
    matched = dataclasses.replace(matched, loss=spoilt)
    result = summarize_gain(matched, without, None, "image", CONFIG, weights=weights)
    lost = without.loss.sum(axis=1)
    assert result["gain"] == pytest.approx(0.5 * (12 * lost[:3].sum()) / (12 * lost[:3].sum() + 2 * lost[3:6].sum()))
    assert [cell["gain"] for cell in result["cells"]] == pytest.approx([0.5, 0, 0], abs=1e-6)
    assert summarize_gain(matched, without, None, "image", CONFIG)["gain"] < result["gain"] - 0.1


def test_blanking_a_video_keeps_its_sound(make_corpus):
    sequence = make_corpus([("recording", 1, {"sound": True})]).encoded_document(0)
    altered = blank_media("video")(0, sequence)
    assert (altered.video == 128).all() and (altered.audio == sequence.audio).all() and len(sequence.audio)


def test_partners_are_of_the_same_cell_and_say_something_else(make_corpus):
    corpus = make_corpus([
        ("screenshot", 3, {"level": 1, "text": "the same line"}),
        ("screenshot", 4, {"level": 2}),
        ("narration", 1, {}),
    ])  # fmt: skip
    partners = choose_mismatched(corpus, np.arange(8), "image", seed=0)
    assert partners[:3].tolist() == [-1, -1, -1]
    assert all(partners[n] in {3, 4, 5, 6} - {n} for n in range(3, 7))


def test_chosen_documents_are_held_out_nested_and_per_cell(make_corpus):
    corpus = make_corpus([
        ("screenshot", 30, {"level": 1}),
        ("screenshot", 3, {"level": 2}),
        ("text", 9, {"split": "train"}),
        ("narration", 9, {"split": "validation"}),
    ])  # fmt: skip
    few = choose_documents(corpus, split="test", per_cell=5, seed=0)
    many = choose_documents(corpus, split="test", per_cell=20, seed=0)
    assert len(few) == 8 and len(many) == 23 and set(few) <= set(many) and max(many) < 33
    assert held_out_split(corpus, EvalConfig()) == "test"
    only_train = make_corpus([("text", 2, {"split": "train"})])
    with pytest.raises(ValueError, match="held-out"):
        held_out_split(only_train, EvalConfig())
    assert held_out_split(make_corpus([("text", 2, {"split": "validation"})]), EvalConfig()) == "validation"


def test_table_has_a_row_per_kind_and_level(make_corpus, measured):
    corpus = make_corpus([("screenshot", 2, {"level": 1}), ("screenshot", 2, {"level": 3}), ("text", 1, {"level": 0})])
    rows = loss_table(measured(corpus))
    assert [(row["kind"], row["level"], row["documents"]) for row in rows] == [
        ("screenshot", 1, 2), ("screenshot", 3, 2), ("text", 0, 1)]  # fmt: skip


def test_validator_gives_plain_json_in_a_fixed_order(make_corpus, known_model, tokenizer):
    import json

    corpus = make_corpus([("screenshot", 6, {"split": "validation"}), ("text", 2, {"split": "train"})])
    validator = Validator(corpus, tokenizer, EvalConfig(validation_per_cell=4, seq_len=16, batch_size=1))
    first = validator(known_model)
    assert json.loads(json.dumps(first)) == first == validator(known_model)
    assert len(first["documents"]) == len(first["tokens"]) == 4
    assert first["image"] == pytest.approx(math.log(2), rel=1e-5)
    answers = iter([False, True])
    assert validator(known_model, 10, lambda: next(answers)) is None
    empty = Validator(make_corpus([("text", 1, {"split": "train"})]), tokenizer, EvalConfig())
    assert empty(known_model) == {}


def test_a_task_is_what_follows_one_medium(make_corpus, tokenizer):
    corpus = make_corpus([("screenshot", 1, {"text": "abc"}), ("recording", 1, {"sound": True}), ("text", 1, {})])
    task = transcription_task_of(corpus.encoded_document(0), max_new_tokens=10)
    assert tokenizer.decode(task.reference) == "abc" and task.modality == "image"
    assert len(task.prompt) == len(corpus.encoded_document(0)) - 4 and len(task.prompt.image) == 3
    assert len(transcription_task_of(corpus.encoded_document(0), max_new_tokens=2).reference) == 2
    assert transcription_task_of(corpus.encoded_document(1), max_new_tokens=10).modality == "video"
    assert transcription_task_of(corpus.encoded_document(2), max_new_tokens=10) is None


def test_the_loss_is_computed_as_the_runtime_asked(make_corpus, known_model, tokenizer, monkeypatch):
    from brine.evals import loss as module

    taken, right = [], module.linear_cross_entropy
    monkeypatch.setattr(module, "linear_cross_entropy", lambda *a, **k: taken.append(k["backend"]) or right(*a, **k))
    corpus = make_corpus([("text", 2, {})])
    for backend in ("auto", "reference"):
        monkeypatch.setattr(known_model, "loss_backend", backend, raising=False)
        measure_losses(known_model, corpus, np.arange(2), token_bytes=token_byte_lengths(tokenizer), config=CONFIG)
        assert set(taken) == {backend}
        taken.clear()
