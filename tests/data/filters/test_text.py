"""Duplicates and quality of text, on corpora in which each document was made to be kept or to be dropped."""

import base64
import functools
import hashlib
import random
import shutil
import string
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from brine.data.corpus.store import CorpusError, DecodingCorpus, EncodedCorpus, build_corpus
from brine.data.filters.duplicates import ExactDuplicates, NearDuplicates, _signatures, shingle_hashes, signature
from brine.data.filters.filter_context import FilterContext
from brine.data.filters.filter_log import FilterLog
from brine.data.filters.near import cluster_signatures
from brine.data.filters.quality import CODE, MEASURES, PROSE, TextQuality, measure
from tests.data.media_files import line, manifest, picture

pytestmark = pytest.mark.slow

VOCABULARY = ["".join(random.Random(n).choices(string.ascii_lowercase, k=3 + n % 7)) for n in range(900)]


def words(seed: int, count: int = 120) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def prose(seed: int, count: int = 120) -> str:
    return textwrap.fill(" ".join(words(seed, count)), 70)


def edited(seed: int, places: list[int], count: int = 120) -> str:
    """The words of a seed with some of them changed."""
    changed = words(seed, count)
    for place in places:
        changed[place] = f"other{place}"
    return " ".join(changed)


def build(folder, lines, tokenizer, **options) -> EncodedCorpus:
    return build_corpus(manifest(folder / "m", lines), folder / "c", tokenizer=tokenizer, num_workers=1, **options)


def dropped(corpus, filter_, **options) -> dict[str, str]:
    """Id to reason of what a rule drops from a whole corpus."""
    filter_log = FilterLog.open(corpus)
    filter_log.add(filter_, **options)
    found = {entry["id"]: entry["reason"] for entry in filter_log.dropped(len(filter_log))}
    assert set(found) == {corpus.ids[number] for number in np.flatnonzero(~filter_log.kept_mask())}
    return found


@pytest.fixture(scope="module")
def exact(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("exact")
    for name, seed in (("a", 1), ("copy", 1), ("other", 2)):
        picture(root / f"m/{name}.png", 40, 24, seed=seed)
    lines = [
        line("first", "the same words"),
        line("leaked", {"image": "a.png"}, "a picture"),
        line("second", "the same words"),
        line("picture", {"image": "other.png"}, "a picture"),
        line("validation", {"image": "copy.png"}, "a picture", split="validation"),
        line("third", "the same words", kind="other", source="elsewhere"),
        line("close", "the same word"),
        line("test", "words of a test", split="test"),
        line("validation of a test", "words of a test", split="validation"),
    ]
    return root, lines, build(root, lines, tokenizer)


@pytest.fixture()
def exact_copy(exact, tmp_path):
    return EncodedCorpus.open(shutil.copytree(exact[2].folder, tmp_path / "c"))


def test_equal_documents_are_dropped_and_held_out_ones_win(exact_copy):
    """Files of other names hold the same image; kinds and sources do not make a document another."""
    assert dropped(exact_copy, ExactDuplicates()) == {
        "leaked": "equal to 'validation' (validation)",
        "second": "equal to 'first' (train)",
        "third": "equal to 'first' (train)",
        "validation of a test": "equal to 'test' (test)",
    }
    column = FilterLog.open(exact_copy).column("duplicate_of")
    assert column.tolist() == [-1, 4, 0, -1, -1, 0, -1, -1, 7]


def test_a_checksum_alone_makes_no_duplicate(exact_copy):
    """Two documents of one length with equal crc32 are told apart."""
    exact_copy._index["crc32"] = np.full_like(exact_copy._index["crc32"], 5)
    filter_log = FilterLog.open(exact_copy)
    filter_context = FilterContext(exact_copy, np.arange(exact_copy.num_documents), filter_log.column)
    reasons = ExactDuplicates().apply(filter_context).reasons
    # checksums no longer fit, so what has media cannot be read, and the rest is still compared by content
    assert "cannot be read" in reasons[1] and reasons[2].startswith("equal") and 6 not in reasons


def test_media_are_needed_and_may_be_decoded(exact, tmp_path, tokenizer):
    root, lines, _ = exact
    shutil.copytree(root / "m", tmp_path / "m")
    bare = build(tmp_path, lines, tokenizer, keep_media=False)
    with pytest.raises(CorpusError, match="open it with DecodingCorpus"):
        FilterLog.open(bare).add(ExactDuplicates())
    assert len(FilterLog.open(bare)) == 0 and not list(bare.folder.glob("filter_log/*"))
    decoding = DecodingCorpus(bare.folder)
    try:
        assert set(dropped(decoding, ExactDuplicates())) == {"leaked", "second", "third", "validation of a test"}
    finally:
        decoding.close()


@pytest.fixture(scope="module")
def near(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("near")
    picture(root / "m/a.png", 20, 20)
    lines = [
        line("a", prose(1)),
        line("a, one word changed", edited(1, [60])),
        line("a, laid out anew", "   ".join(words(1)).upper()),
        line("a, half changed", edited(1, list(range(0, 120, 8)))),
        line("b leaks", edited(2, [3])),
        line("b", prose(2), split="test"),
        line("short", "seven words are too few to judge"),
        line("short again", "seven words are too few to judge"),
        line("a with a picture", {"image": "a.png"}, prose(1)),
        *(line(f"alone {n}", prose(100 + n)) for n in range(20)),
    ]
    return build(root, lines, tokenizer)


@pytest.fixture()
def near_copy(near, tmp_path):
    return EncodedCorpus.open(shutil.copytree(near.folder, tmp_path / "c"))


@pytest.mark.parametrize("unit", ["word", "token"])
def test_near_duplicates_are_found(near_copy, unit):
    found = dropped(near_copy, NearDuplicates(unit=unit, shingle_length=5 if unit == "word" else 8))
    expected = {"a, one word changed", "a, laid out anew", "b leaks"}
    # tokens know capitals and spaces, and a line break is no space
    assert set(found) == (expected if unit == "word" else set())
    if unit == "word":
        assert found["b leaks"].startswith("near 'b' (test): estimated Jaccard 0.")
        assert found["a, laid out anew"] == "near 'a' (train): estimated Jaccard 1.000"


def test_tokens_find_an_edit_where_the_layout_is_kept(tmp_path, tokenizer):
    lines = [line("a", edited(1, [5])), line("b", edited(1, [5, 60])), line("c", edited(1, list(range(0, 120, 8))))]
    corpus = build(tmp_path, lines, tokenizer)
    assert set(dropped(corpus, NearDuplicates(unit="token"))) == {"b"}


def test_near_duplicates_do_not_depend_on_workers(near_copy, tmp_path):
    other = EncodedCorpus.open(shutil.copytree(near_copy.folder, tmp_path / "d"))
    filter_ = NearDuplicates(threshold=0.5)
    assert set(dropped(near_copy, filter_)) > {"a, one word changed"}
    # in chunks small enough that both workers get some
    spread = FilterContext(other, np.arange(other.num_documents), lambda name: None, num_workers=2)
    here = FilterContext(other, np.arange(other.num_documents), lambda name: None)
    function = functools.partial(_signatures, filter_=filter_)
    results = [
        list(filter_context.map(function, filter_context.documents, chunk_documents=8))
        for filter_context in (here, spread)
    ]
    for (number, left), (same, right) in zip(*results, strict=True):
        assert number == same and np.array_equal(left, right)


def test_the_threshold_decides_and_estimates_are_close(near_copy):
    """The estimate stands within five standard errors of the truth, computed from the sets themselves."""
    filter_log = FilterLog.open(near_copy)
    filter_log.add(NearDuplicates(threshold=0.2, num_perm=256))
    original, jaccard = filter_log.column("near_duplicate_of"), filter_log.column("near_duplicate_jaccard")
    assert original[1] == 0 and original[3] == 0 and np.isnan(jaccard[0])

    def shingles(text):
        parts = text.lower().split()
        return {tuple(parts[i : i + 5]) for i in range(len(parts) - 4)}

    texts = [" ".join(words(1)), edited(1, list(range(0, 120, 8)))]
    left, right = map(shingles, texts)
    truth = len(left & right) / len(left | right)
    assert jaccard[3] == pytest.approx(truth, abs=5 * np.sqrt(truth * (1 - truth) / 256))
    assert 0.1 < truth < 0.6


def test_signatures_estimate_jaccard():
    """40 pairs of sets of known overlap: unbiased, and as scattered as the theory says."""
    filter_, errors = NearDuplicates(num_perm=256), []
    for seed in range(40):
        values = np.random.default_rng(seed).integers(0, 2**32, 1500, dtype=np.uint32)
        left, right = values[:1000], values[500:]
        errors.append(float((signature(left, filter_) == signature(right, filter_)).mean()) - 1 / 3)
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 2 * np.sqrt(2 / 9 / 256)


def test_clusters_of_signatures():
    """Copies join by their keys alone, near ones within a group, chains transitively; order is that of first
    indices."""
    base = np.arange(64)
    near, far = np.where(base < 50, base, base + 100), np.where(base < 50, base + 900, base + 100)
    signatures = [base, base + 500, near, (), near, (), far, ()]
    keys = ["a", "b", "c", "x", "d", "y", "e", "x"]
    found = cluster_signatures(signatures, keys, threshold=0.7, bands=(32, 2))
    assert found == [[0, 2, 4], [1], [3, 7], [5], [6]]
    groups = [0, 0, 1, 0, 0, 0, 0, 0]
    assert cluster_signatures(signatures, keys, threshold=0.7, bands=(32, 2), groups=groups)[0] == [0, 4]
    # 14 entries of 64 are shared with `near`
    assert cluster_signatures(signatures, keys, threshold=0.2, bands=(32, 2))[0] == [0, 2, 4, 6]
    assert cluster_signatures([], [], threshold=0.5) == []


def test_shingles_are_runs_of_units():
    units = np.array([3, 1, 4, 1, 5, 3, 1, 4], dtype=np.uint64)
    assert len(shingle_hashes(units, 3)) == 5 and len(shingle_hashes(units, 1)) == 4
    assert len(shingle_hashes(units[:2], 3)) == 0
    assert set(shingle_hashes(units[5:], 3)) <= set(shingle_hashes(units, 3))


@pytest.mark.parametrize(
    "fields, message",
    [({"threshold": 0}, "0.8 is usual"), ({"num_perm": 4}, "128 is usual"), ({"unit": "line"}, '"word" or "token"')],
)
def test_settings_that_cannot_work_tell_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        NearDuplicates(**fields)


CHINESE = "\n".join("".join(chr(0x4E00 + (7919 * i * (j + 3) + j) % 3000) for j in range(40)) for i in range(1, 12))
HINDI = "हर सुबह वह नदी के किनारे टहलने जाता है और लौटते समय बाज़ार से ताज़ी सब्ज़ियाँ लाता है। " * 1 + (
    "बच्चे स्कूल के मैदान में खेल रहे थे जब बारिश शुरू हुई और सब भीतर भागे। गाँव के बुज़ुर्ग पेड़ के नीचे बैठकर पुरानी कहानियाँ सुनाते हैं।"
)
SOURCE = "\n".join(f"def f_{n}(x):\n    return [x + {n}, x * {n * n % 17}]\n" for n in range(30))
NOISE = "".join(map(chr, np.random.default_rng(0).integers(33, 0x2FFF, 3000).tolist()))

CASES = {
    # name: (kind, text, measure at fault or None)
    "prose": ("page", prose(1), None),
    "chinese": ("page", CHINESE, None),
    "hindi": ("page", HINDI, None),
    "source": ("code", SOURCE, None),
    "short": ("page", "Too short.", "characters"),
    "symbols": ("page", "*** --- +++ === ??? " * 3 + prose(2)[:100] + "<>|" * 200, "alnum_fraction"),
    "control": ("page", prose(3) + "\x00\x01\x02" * 20, "nonprinting_fraction"),
    "mojibake": ("page", prose(3).replace("e", "\ufffd"), "nonprinting_fraction"),
    "lines": (
        "page",
        "\n".join([*prose(4).splitlines(), *(["buy this now, click here"] * 40)]),
        "duplicate_line_fraction",
    ),
    "runs": ("page", " ".join(words(5, 60) * 4), "duplicate_ngram_fraction"),
    "top": ("page", " ".join(" ".join([*words(n, 9), "we use cookies here"]) for n in range(40)), "top_ngram_fraction"),
    "blob": ("page", prose(6) + base64.b64encode(hashlib.sha512(b"x").digest() * 9).decode(), "blob_fraction"),
    "keys": ("code", SOURCE[:300] + "\n" + hashlib.sha512(b"y").hexdigest() * 2 + "\n", "blob_fraction"),
    "minified": ("code", SOURCE.replace("\n", ";"), "mean_line_length"),
    "one line": ("code", f"{SOURCE}x = [{', '.join(words(8, 200))}]\n{SOURCE.replace('f_', 'g_')}", "max_line_length"),
    "generated": ("code", "# This file was automatically generated.\n" + SOURCE, "generated"),
    "repeated": ("code", "".join(f"a{n % 10},\n" for n in range(9000)), "duplicate_line_fraction"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_named(name):
    kind, text, expected = CASES[name]
    reason = TextQuality()._reason(measure(text), is_code=kind == "code", with_media=False)
    assert reason.split(" of ")[0] == (expected or "")


def test_measures_of_a_text_worked_by_hand():
    found = measure("ab cd\nab cd\n\n  x\u0001y 12\n")
    # 22 characters: 3 + 5 + ... lines "ab cd", "ab cd", "  x.y 12"
    assert found["characters"] == 22 and found["max_line_length"] == 8 and found["mean_line_length"] == 6
    assert found["nonprinting_fraction"] == 1 / 22 and found["alnum_fraction"] == 12 / 13
    assert found["duplicate_line_fraction"] == 5 / 16 and found["duplicate_ngram_fraction"] == 0
    repeated = " ".join([*"abcdefghij", *"abcdefghij", "k"])
    found = measure(repeated)
    assert found["duplicate_ngram_fraction"] == 10 / 21 and found["top_ngram_fraction"] == 8 / 21
    assert measure("x" * 50, limit=10)["max_line_length"] == 10 and measure("x" * 50, limit=10)["characters"] == 50
    assert list(found) == list(MEASURES)


def test_compression_tells_repetition_from_noise():
    assert measure("same " * 2000)["compression"] < PROSE.compression[0]
    assert measure(prose(1, 2000))["compression"] < 0.6 < measure(NOISE)["compression"]


@pytest.fixture(scope="module")
def inspected(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("quality")
    picture(root / "m/a.png", 20, 20)
    lines = [line(name, text, kind=kind) for name, (kind, text, _) in CASES.items()]
    lines += [
        line("caption", {"image": "a.png"}, "cat", kind="page"),
        line("silent", {"image": "a.png"}, kind="page"),
        line("held out", "Too short.", kind="page", split="test"),
    ]
    return build(root, lines, tokenizer)


def test_a_corpus_is_judged_by_its_kinds(inspected, tmp_path):
    corpus = EncodedCorpus.open(shutil.copytree(inspected.folder, tmp_path / "c"))
    found = dropped(corpus, TextQuality())
    assert set(found) == {name for name, (_, _, fault) in CASES.items() if fault}
    assert found["short"] == "characters of 10 is below 100 (prose)"
    assert found["generated"] == "generated of 1 is above 0 (code)"
    filter_log = FilterLog.open(corpus)
    column = filter_log.column("text_characters")
    assert column[corpus.ids.index("caption")] == 3 and np.isnan(column[corpus.ids.index("silent")])
    assert np.isnan(column[corpus.ids.index("held out")])
    filter_log.undo()
    wide = replace(CODE, generated=(None, None), mean_line_length=(None, None))
    filter_ = TextQuality(code=wide, kinds=("code",), splits=("train", "test"))
    assert not set(dropped(corpus, filter_)) & {"generated", "short", "held out", "prose"}


def test_bounds_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"alnum_fraction must be \(least, greatest\)"):
        replace(PROSE, alnum_fraction=0.5)
    with pytest.raises(ValueError, match="characters"):
        replace(PROSE, characters=(10, 5))
