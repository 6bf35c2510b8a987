"""Several sources joined into one corpus: roots, ids, splits, consent, weights, digests."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image as Picture

from brine.data.config import EncodeConfig
from brine.data.corpus.consent import consent_of, count_sources
from brine.data.corpus.store import EncodedCorpus, build_corpus, open_corpus
from brine.data.document import Document, Quarantined, media_paths
from brine.data.files.addresses import DocumentError
from brine.data.files.roots import MediaRoots
from brine.data.formats.corpus_source import CONSENT_CLASSES, CorpusSource, check_sources
from brine.data.formats.joined import open_sources
from brine.data.formats.open import open_source
from brine.data.tokenizer import train_tokenizer

WORDS = EncodeConfig(patch_size=8)


def write(folder: Path, records: list[dict], *, colors: dict[str, tuple] | None = None) -> Path:
    """A manifest with its images; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, color in (colors or {}).items():
        Picture.new("RGB", (16, 16), color).save(folder / name)
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def record(name: str, *content, split: str = "train", **fields) -> dict:
    parts = [{"type": "image", "image": each[1:]} if each.startswith("!") else {"type": "text", "text": each}
             for each in content]  # fmt: skip
    return {"id": name, "content": parts, "split": split, **fields}


@pytest.fixture
def two(tmp_path) -> tuple[CorpusSource, CorpusSource]:
    """Two sources whose images have equal paths, and one id in common."""
    wiki = write(
        tmp_path / "wiki",
        [record("a", "!x.png", "a red square"), record("b", "only words here", source="enwiki"),
         record("t", "held out words", split="test")],
        colors={"x.png": (255, 0, 0)},
    )  # fmt: skip
    own = write(
        tmp_path / "own",
        [record("a", "!x.png", "a green square", source="notes"), record("c", "words of mine")],
        colors={"x.png": (0, 255, 0)},
    )
    return CorpusSource("wiki", wiki, 2.0, "public"), CorpusSource("own", own.parent, consent="own")


def built(sources, folder, **options) -> EncodedCorpus:
    source = open_sources(sources)
    texts = ("a red green square only words here of mine held out",)
    return build_corpus(source, folder, tokenizer=train_tokenizer(texts, 280), config=WORDS, num_workers=1, **options)


def test_joined_documents_keep_their_roots_and_are_known_by_their_source(two, tmp_path):
    corpus = built(two, tmp_path / "corpus")
    assert corpus.ids == ["a", "b", "t", "own/a", "c"]
    assert [corpus.sources[each] for each in corpus.source] == ["wiki", "wiki:enwiki", "wiki", "own:notes", "own"]
    for number, color in ((0, (255, 0, 0)), (3, (0, 255, 0))):
        (path,) = media_paths(corpus.document(number))
        file = corpus.path_of(corpus.document(number).parts[0])
        assert path == f"{('wiki', 'own')[number // 3]}/x.png" and file == tmp_path / path
        assert Picture.open(file).getpixel((0, 0)) == color
        assert (corpus.encoded_document(number).image[0].reshape(-1, 3) == color).all()
    assert corpus.consent_classes == {"wiki": "public", "own": "own"} and consent_of(corpus, 3) == "own"
    counts = count_sources(corpus)
    assert [counts["wiki"][key] for key in ("consent", "documents", "train_documents")] == ["public", 3, 2]
    assert counts["wiki"]["tokens"] + counts["own"]["tokens"] == corpus.num_tokens.sum()
    described = corpus.meta["corpus_sources"]
    assert [each["sha256"] for each in described] == [open_source(each.path).fingerprint(media=False) for each in two]


def test_a_corpus_of_one_source_is_as_it_was(two, tmp_path):
    """No new field in its meta.json, and one unknown class of consent."""
    tokenizer = train_tokenizer(["words"], 280)
    corpus = build_corpus(two[0].path, tmp_path / "one", tokenizer=tokenizer, config=WORDS, num_workers=1)
    assert "corpus_sources" not in corpus.meta and corpus.meta["root"] == str(tmp_path / "wiki")
    assert corpus.consent_classes == {} and list(count_sources(corpus)) == [""]
    assert count_sources(corpus)[""]["consent"] == consent_of(corpus, 0) == "unknown"


def test_media_of_a_joined_corpus_are_decoded_again_and_their_changes_noticed(two, tmp_path, caplog):
    corpus = built(two, tmp_path / "corpus", keep_media=False)
    decoding = open_corpus(corpus.folder)
    try:
        assert (decoding.encoded_document(3).image[0].reshape(-1, 3) == (0, 255, 0)).all()
    finally:
        decoding.close()
    Picture.new("RGB", (16, 16), (0, 0, 255)).save(tmp_path / "own" / "x.png")
    caplog.set_level("WARNING")
    built(two, tmp_path / "corpus", keep_media=False)
    assert "'own/x.png' first" in caplog.text and "1 of" in caplog.text


def test_joined_sources_encoded_by_blocks_are_the_same_bytes(two, tmp_path):
    from tests.data.corpus.test_blocks import InlineEngine, files_of

    for file in (tmp_path / "wiki" / "x.png", tmp_path / "own" / "x.png"):
        # older than a clock's tick, or a stamp would say that it may change again
        os.utime(file, (1e9, 1e9))
    time.sleep(0.2)
    one = built(two, tmp_path / "one", shard_documents=2)
    blocks = built(two, tmp_path / "blocks", shard_documents=2, engine=InlineEngine())
    assert files_of(one.folder) == files_of(blocks.folder)


@pytest.mark.parametrize(
    "path", ["wiki/../own/x.png", "wiki//etc/passwd", "other/x.png", "wiki", "../x", "wiki/a/../../x"]
)
def test_no_path_leaves_the_root_of_its_source(path, tmp_path):
    roots = MediaRoots({"wiki": tmp_path / "wiki", "own": tmp_path / "own"})
    with pytest.raises(DocumentError):
        roots / path


def test_a_link_into_another_source_is_quarantined(two, tmp_path):
    """Both roots are the corpus's, yet one source's manifest must not reach into the other's folder."""
    os.symlink(tmp_path / "own" / "x.png", tmp_path / "wiki" / "y.png")
    write(tmp_path / "wiki", [record("a", "!x.png", "a red square"), record("b", "!y.png", "not mine")])
    corpus = built(two, tmp_path / "corpus")
    (found,) = [each for each in corpus.quarantine() if each["id"] == "b"]
    assert "'wiki/y.png' is a link out of the manifest's folder" in found["reason"]


def test_what_users_gave_for_evaluation_alone_is_held_out(two, tmp_path):
    users = write(tmp_path / "users", [record("u", "please fix"), record("v", "and this", split="validation")])
    sources = (*two, CorpusSource("users", users, consent="user-evaluate"))
    documents = {each.id: each for each in open_sources(sources).documents()}
    assert (documents["u"].split, documents["v"].split, documents["c"].split) == ("test", "validation", "train")
    source = open_sources(sources)
    list(source.documents())
    assert any("by consent (user-evaluate) (test 1)" in line for line in source.summary_lines())


def test_a_pool_of_pseudo_labels_names_the_models_that_labelled(tmp_path):
    lines = [
        record(name, f"words {name}") | {"pseudo": {"origin": origin * 64}}
        for name, origin in zip("abc", "ded", strict=True)
    ]
    sources = [
        CorpusSource("own", write(tmp_path / "own", [record("o", "words of people")])),
        CorpusSource("pool", write(tmp_path / "pool", lines), consent="pseudo"),
    ]
    own, pool = open_sources(sources).described
    assert pool["labelled_by"] == ["d" * 64, "e" * 64] and "labelled_by" not in own


@pytest.mark.parametrize("name", ["pool.jsonl", "manifest.jsonl", "below/a.jsonl", "pool.jsonl.gz", "pool.json"])
@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_the_models_that_labelled_are_found_in_whatever_form_a_pool_is_given(name, as_folder, tmp_path):
    lines = [record(each, f"words {each}") | {"pseudo": {"origin": each * 64}} for each in "ab"]
    file = tmp_path / "pool" / name
    file.parent.mkdir(parents=True)
    text = json.dumps(lines) if name.endswith(".json") else "".join(json.dumps(each) + "\n" for each in lines)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = CorpusSource("pool", tmp_path / "pool" if as_folder else file, consent="pseudo")
    (pool,) = open_sources([source]).described
    assert pool["labelled_by"] == ["a" * 64, "b" * 64]


def test_ids_that_are_paths_hold_nothing_out(tmp_path):
    """Two folders may each have a README.md; equal content is still held out."""
    for name, texts in {"ours": ("one", "same"), "theirs": ("two", "same")}.items():
        (tmp_path / name).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / name / f"{number}.md").write_text(f"# {text}\n\nwords of a page\n")
    sources = (
        CorpusSource("ours", tmp_path / "ours"),
        CorpusSource("theirs", tmp_path / "theirs", consent="user-evaluate"),
    )
    found = list(open_sources(sources).documents())
    quarantined = [each for each in found if isinstance(each, Quarantined)]
    assert [each.reason.partition("same ")[2] for each in quarantined] == ["content: not trained on"]
    assert len([each for each in found if isinstance(each, Document)]) == 3


def held_out_pair(tmp_path, *, picture: tuple) -> tuple[CorpusSource, CorpusSource]:
    """A training document first, and its copy held out by the later source under another id and file name."""
    train = write(
        tmp_path / "train",
        [record("m", "!a.png", "a caption"), record("n", "words held out there"), record("k", "words trained on"),
         record("w", "another version")],
        colors={"a.png": (9, 9, 9)},
    )  # fmt: skip
    held = write(
        tmp_path / "held",
        [record("p", "!z.png", "a caption", split="test"), record("q", "words held out there", split="validation"),
         record("r", "words trained on"), record("w", "its first version", split="test")],
        colors={"z.png": picture},
    )  # fmt: skip
    return CorpusSource("train", train), CorpusSource("held", held)


@pytest.mark.parametrize(("picture", "left"), [((9, 9, 9), {"k"}), ((9, 9, 8), {"m", "k"})], ids=["equal", "other"])
def test_what_one_source_holds_out_is_not_trained_on_from_another(picture, left, tmp_path):
    """By content, media included, and by id; equal texts with other media are other documents."""
    found = list(open_sources(held_out_pair(tmp_path, picture=picture)).documents())
    mine = [each for each in found if isinstance(each, Document) and each.source == "train"]
    assert {each.id for each in mine} == left
    reasons = {each.id: each.reason for each in found if isinstance(each, Quarantined)}
    assert "source held holds out a document of the same content" in reasons["n"]
    assert "source held holds out a document of the same id" in reasons["w"]
    # what is held out stays, and training copies inside one split are the filters' job
    theirs = {each.id: each.split for each in found if isinstance(each, Document) and each.source == "held"}
    assert theirs == {"p": "test", "q": "validation", "r": "train", "held/w": "test"}
    assert [each.id for each in open_sources(held_out_pair(tmp_path, picture=picture)).documents()] == [
        each.id for each in found
    ]


def test_what_is_held_out_in_a_tar_counts_too(tmp_path):
    import tarfile

    train, _ = held_out_pair(tmp_path, picture=(9, 9, 9))
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "test.tar", "w") as tar:
        tar.add(tmp_path / "held" / "z.png", "s.png")
        (tmp_path / "s.txt").write_text("a caption")
        tar.add(tmp_path / "s.txt", "s.txt")
    found = list(open_sources((train, CorpusSource("tars", tmp_path / "tars"))).documents())
    assert [each.id for each in found if isinstance(each, Quarantined)] == ["m"]
    (sample,) = [each for each in found if isinstance(each, Document) and each.source.startswith("tars")]
    assert media_paths(sample) == ["tars/test.tar::s.png"] and sample.split == "test"


def test_a_change_of_one_source_changes_its_digest_alone(two, tmp_path):
    before = open_sources(two)
    write(tmp_path / "own", [record("a", "!x.png", "a green circle")])
    after = open_sources(two)
    changed = [old["name"] for old, new in zip(before.described, after.described, strict=True) if old != new]
    assert changed == ["own"]
    assert open_sources((two[0],)).fingerprint() != open_sources((CorpusSource("wiki", two[0].path),)).fingerprint()


def test_the_bytes_of_a_corpus_do_not_depend_on_where_its_sources_lie(two, tmp_path):
    import shutil

    first = built(two, tmp_path / "first")
    for name in ("wiki", "own"):
        shutil.copytree(tmp_path / name, tmp_path / "elsewhere" / name[:1])
    moved = (
        CorpusSource("wiki", tmp_path / "elsewhere" / "w" / "manifest.jsonl", 2.0, "public"),
        CorpusSource("own", tmp_path / "elsewhere" / "o", consent="own"),
    )
    second = built(moved, tmp_path / "second")
    assert first.fingerprint == second.fingerprint
    assert (first.folder / "documents.jsonl").read_bytes() == (second.folder / "documents.jsonl").read_bytes()
    assert second.path_of(second.document(0).parts[0]).is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wiki=/a/b", CorpusSource("wiki", Path("/a/b"))),
        ("wiki=/a,b,weight=2.5,consent=public", CorpusSource("wiki", Path("/a,b"), 2.5, "public")),
        ("w=a=b.jsonl,format=markdown", CorpusSource("w", Path("a=b.jsonl"), format="markdown")),
        ("synth", CorpusSource("synth", None, 1.0, "own")),
        ("synth,weight=0.5", CorpusSource("synth", None, 0.5, "own")),
        ("synth=./synth", CorpusSource("synth", Path("synth"))),
    ],
)
def test_short_form(text, expected):
    assert CorpusSource.parse(text) == expected == CorpusSource.parse(str(expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/a/b", "must read NAME=PATH"), ("wiki=", "must read NAME=PATH"), ("=x", "must read NAME=PATH"),
        ("a/b=x", "the name 'a/b' must be"), ("a:b=x", "the name 'a:b' must be"), ("..=x", "the name '..' must be"),
        ("w=x,weight=two", "a weight that is no number"), ("w=x,weight=-1", "has weight -1.0"),
        ("w=x,weight=nan", "has weight nan"), ("w=x,consent=mine", "none of unknown, public"),
        ("w=x,wieght=2", "gives wieght, which is none of weight"), ("w=x,weight=1,weight=2", "gives weight twice"),
        ("synth,format=markdown", "has no format to give"),
    ],
)  # fmt: skip
def test_mistakes_in_a_source_are_said_in_a_sentence(text, said):
    with pytest.raises(ValueError, match=said) as error:
        CorpusSource.parse(text)
    assert str(error.value).startswith("corpus.sources: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("w=x", "w=y"), "'w' comes twice"), (("synth", "synth"), "'synth' comes twice"),
        (("w=x,consent=user-evaluate",), "no source is left to train on"), (("w=x,weight=0",), "left to train on"),
    ],
)  # fmt: skip
def test_sources_that_do_not_go_together(texts, said):
    with pytest.raises(ValueError, match=said):
        check_sources(tuple(map(CorpusSource.parse, texts)))


def test_a_source_that_cannot_be_opened_is_named(two, tmp_path):
    with pytest.raises(ValueError, match=r"source gone: .*does not exist"):
        open_sources((*two, CorpusSource("gone", tmp_path / "gone")))
    built(two, tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"source again: .* is a built corpus"):
        open_sources((two[0], CorpusSource("again", tmp_path / "corpus")))
    with pytest.raises(ValueError, match="source synth: the synthetic corpus was not made"):
        open_sources((CorpusSource("synth"),))


def test_consent_classes_say_what_they_mean():
    assert {"public", "licensed", "own", "user-train", "user-evaluate", "pseudo"} < set(CONSENT_CLASSES)
    assert all(CONSENT_CLASSES.values())
