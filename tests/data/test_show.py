"""What `show` draws of documents: media, masks, tokens and their words."""

import re

import numpy as np
import pytest
from PIL import Image

from brine.common.tables import bar, histogram, sanitize, sparkline
from brine.data.cli.main import main
from brine.data.config import EncodeConfig
from brine.data.corpus.statistics import reason_group
from brine.data.document import MODALITIES
from brine.data.formats.open import open_source
from brine.data.inspect.check import byte_tokenizer
from brine.data.inspect.show import (
    mask_image,
    media_ranges,
    mel_spectrogram_of,
    pixels_of,
    spans_of,
    token_texts,
    view_corpus,
    view_source,
)
from brine.data.inspect.show_tokens import token_lines
from brine.data.media.audio import decode_audio
from brine.data.packing.composition import binned, count_chunk_tokens, tokens_per_sequence
from brine.data.packing.plan import PackingPlan
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import MEDIA_TOKEN_ID
from tests.data.media_files import line, manifest

pytestmark = pytest.mark.slow


def test_tokens_of_entries_also_of_documents_that_were_split(corpus):
    plan = PackingPlan.build(corpus, seq_len=128, epochs=2, seed=1)
    counts = count_chunk_tokens(corpus, plan)
    assert (plan.stop - plan.start < corpus.num_tokens[plan.document]).sum() > 3
    for entry, (document, start, stop) in enumerate(zip(plan.document, plan.start, plan.stop, strict=True)):
        ids = corpus.tokens(document).token_ids[start:stop]
        media = [int((ids == MEDIA_TOKEN_ID[name]).sum()) for name in MODALITIES]
        assert counts[entry].tolist() == [stop - start - sum(media), *media]
    rows = tokens_per_sequence(plan, counts)
    assert rows.sum(axis=1).tolist() == [sum(e[2] - e[1] for e in plan.chunks(number)) for number in range(len(plan))]
    assert binned(rows, 3).sum(axis=0).tolist() == counts.sum(axis=0).tolist() and len(binned(rows, 3)) == 3


@pytest.mark.parametrize("name", ["shot-5", "word-4", "film-3"])
def test_show_draws_every_modality(name, corpus, tmp_path, capsys):
    out = tmp_path / "view.png"
    assert main(["show", str(corpus.folder), name, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    pixels = np.asarray(Image.open(out).convert("L"))
    assert pixels.shape[1] == 1600
    # no band of the image is empty: heading, tokens, media, places and mask all leave ink
    bands = np.array_split(pixels[: -len(pixels) // 20], 6)
    assert all((band < 200).mean() > 0.002 for band in bands)


def test_show_puts_media_together_as_they_were(corpus, manifest_path):
    """An image's pixels, a sound's mel and a video's frames come back from their patches."""
    root = manifest_path.parent
    view = view_corpus(corpus.folder, "shot-5")
    original = np.asarray(Image.open(root / "media/5.png"))
    pixels, times = pixels_of(view, media_ranges(view)[0])
    high, wide = original.shape[:2]
    assert np.array_equal(pixels[0, :high, :wide], original) and times.tolist() == [0.0]
    view = view_corpus(corpus.folder, "word-4")
    mel = mel_spectrogram_of(view, media_ranges(view)[0])
    assert np.array_equal(mel.reshape(-1, corpus.config.audio_dim), decode_audio(root / "media/4.wav", corpus.config))
    view = view_corpus(corpus.folder, "film-3")
    frames, times = pixels_of(view, media_ranges(view)[0])
    assert (
        times.tolist() == [k / 2 for k in range(len(times))]
        and len(mel_spectrogram_of(view, media_ranges(view)[0])) > 100
    )
    # frame n of the made video is of grey 2 n, ten of them a second
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 20 * times).max() < 3
    page = view_corpus(corpus.folder, "page")
    assert [medium.modality for medium in media_ranges(page)] == ["image", "audio", "video"]
    assert np.allclose(pixels_of(page, media_ranges(page)[2])[1], [0, 0.5, 1, 1.5, 2, 2.5])


def test_mask_is_that_of_the_kernels(corpus):
    torch = pytest.importorskip("torch")
    from brine.kernels.attention.spans import Spans

    sequence = corpus.encoded_document(corpus.ids.index("page"))
    lo, hi = spans_of(sequence)
    spans = Spans.packed(torch.zeros(1, len(sequence), dtype=torch.int64), block=torch.tensor(sequence.block)[None])
    assert np.array_equal(lo, spans.lo[0].numpy()) and np.array_equal(hi, spans.hi[0].numpy())
    mask, places = mask_image(sequence)
    ahead = (sequence.block[:, None] == sequence.block) & (sequence.block > 0)
    expected = np.tril(np.ones(mask.shape)) + 2 * np.triu(ahead, 1)
    assert np.array_equal(mask, expected) and len(places) == len(sequence)
    small, places = mask_image(sequence, max_side=50)
    assert len(places) == 50 and np.array_equal(small, mask[np.ix_(places, places)])


@pytest.mark.slow
def test_show_from_a_source_by_id_and_by_number(tmp_path, monkeypatch, capsys):
    """Ids go before numbers; the default file is named after the document and lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = manifest(
        tmp_path / "m", [line("first/../é", "<b>x</b>\n\x1b"), line("0", "zero"), line("no", {"image": "n.png"})]
    )
    assert main(["show", str(path), "first/../é"]) == 0
    assert capsys.readouterr().out.strip() == "first----é.png" and (tmp_path / "first----é.png").is_file()
    source = open_source(path)
    found = [view_source(source, name, tokenizer=byte_tokenizer(), config=EncodeConfig()) for name in ("0", "1")]
    assert [view.document.id for view in found] == ["0", "0"]
    with pytest.raises(ValueError, match=r"'n\.png' does not exist"):
        view_source(source, "2", tokenizer=byte_tokenizer(), config=EncodeConfig())


@pytest.mark.slow
def test_show_page_has_every_token_and_no_markup_of_the_document(tmp_path, capsys):
    path = manifest(tmp_path / "m", [line("a", "<b>x</b>\n\x1b")])
    assert main(["show", str(path), "a", "--out", str(tmp_path / "a.html")]) == 0
    page = (tmp_path / "a.html").read_text()
    words = re.sub(r"<[^>]+>", "", page.split('class="tokens">')[1])
    assert "&lt;b&gt;x&lt;/b&gt;↵\n\\x1b⟨end⟩" in words and "<b>" not in page
    assert "data:image/png;base64," in page and page.count("<span") == len("<b>x</b>\n\x1b") + 1


def test_words_of_tokens_keep_broken_and_spread_characters(corpus):
    tokenizer = byte_tokenizer()
    ids = [*tokenizer.encode("aé"), *tokenizer.encode("€")[:2], *tokenizer.encode("b")]
    count = len(ids)
    base = corpus.encoded_document(0).slice(0, 0)
    fields = {name: getattr(base, name) for name in MODALITIES}
    sequence = EncodedDocument(
        np.array(ids, np.int32),
        np.zeros((count, 3), np.float32),
        np.zeros(count, np.int32),
        np.ones(count, bool),
        np.zeros(count, np.uint8),
        **fields,
    ).validate()
    view = view_corpus(corpus.folder, "text-0")
    view = type(view)(view.document, sequence, tokenizer, view.config, "")
    assert token_texts(view, 0, count) == ["a", "", "é", "", "", "\\xe2\\x82b"]
    lines, excluded = token_lines(view, [], max_lines=5)
    assert "".join(box.word for box in lines[0]) == "a·é··\\xe2\\x82b" and excluded == 0


def test_text_drawn_for_a_terminal():
    assert sanitize("a\x1b[2Jb\n" + "x" * 300, 10) == "a�[2Jb�xx…"
    assert (bar(0), bar(1, 4), bar(0.5, 4), bar(1e-9, 4)) == ("", "████", "██", "▏")
    assert sparkline([0, 0.01, 0.5, 1, 2]) == " ▁▄██"
    rows = histogram(np.array([1, 2, 3, 9]), width=8).splitlines()
    assert [row.split()[-1] for row in rows[1:]] == ["████", "████████", "0", "████"]
    reason = "line 7: file 'a/b.png' has 300 MiB, over max_file_mib=256"
    assert reason_group(reason) == "file '…' has N MiB, over max_file_mib=N"
