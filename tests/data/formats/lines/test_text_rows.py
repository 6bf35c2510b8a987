"""Rows of text corpora keep their words though columns of provenance look like media; captions stay captions."""

import json

import pytest

from brine.data.formats.lines.provenance import is_provenance
from brine.data.formats.open import open_source
from tests.data.format_files import media, read, texts
from tests.data.media_files import manifest

JPG, WARC = "https://x.org/pages/heron.jpg", "s3://commoncrawl/crawl-data/CC-MAIN/warc/x.warc.gz"
LONG = "A heron stands in the water. " * 20
WORDS = "The heron is a bird."
ROWS = {
    "C4": {"text": WORDS, "timestamp": "2019-04-25T12:57:54Z", "url": JPG},
    "mC4": {"text": WORDS, "timestamp": "2019-04-25", "url": "http://x.org/a.mp4"},
    "FineWeb": {"text": WORDS, "id": "<urn:uuid:1>", "dump": "CC-MAIN", "url": JPG, "date": "2020", "file_path": WARC,
                "language": "en", "language_score": 0.98, "token_count": 6},
    "FineWeb-Edu": {"text": WORDS, "id": "1", "dump": "CC", "url": JPG, "file_path": WARC, "int_score": 3},
    "RedPajama": {"text": WORDS, "meta": {"url": JPG, "timestamp": "2020", "source": "cc", "language": "en"},
                  "red_pajama_subset": "common_crawl"},
    "RedPajama text": {"text": WORDS, "meta": json.dumps({"url": JPG}), "red_pajama_subset": "arxiv"},
    "RedPajama-V2": {"raw_content": WORDS, "doc_id": "2018/a.json.gz/1", "meta": json.dumps({"url": JPG}), "url": JPG,
                     "quality_signals": "{}"},
    "Pile": {"text": WORDS, "meta": {"pile_set_name": "Pile-CC"}},
    "Dolma": {"id": "x", "text": WORDS, "added": "2023", "created": "2019", "source": "cc", "metadata": {"url": JPG}},
    "OSCAR": {"id": 0, "text": WORDS, "meta": {"warc_headers": {"warc-target-uri": JPG}, "identification": {}}},
    "OSCAR-2301": {"content": WORDS, "warc_headers": {"warc-target-uri": JPG}, "metadata": {"quality_warnings": None}},
    "RefinedWeb": {"content": WORDS, "url": JPG, "timestamp": "2019", "dump": "CC", "segment": "1",
                   "image_urls": [[JPG, "a heron"]]},
    "Cosmopedia": {"prompt": "Write", "text_token_length": 5, "text": WORDS, "seed_data": "web", "format": "blog",
                   "audience": "general"},
    "StarCoder": {"max_stars_repo_path": "img/a.svg", "max_stars_repo_name": "a/b", "max_stars_count": 3, "id": "1",
                  "content": WORDS},
    "an SVG in a repository": {"content": WORDS, "path": "img/a.svg", "repo_name": "a/b", "license": "mit"},
    "The Stack": {"content": WORDS, "path": "src/app.ts", "repo_name": "a/b", "size": "20", "license": "mit"},
    "CodeParrot": {"repo_name": "a/b", "path": "src/main.py", "copies": "1", "content": WORDS, "license": "mit"},
    "github-code": {"code": WORDS, "repo_name": "a/b", "path": "x/y.c", "language": "C", "license": "mit", "size": 3},
    "file_name of a program": {"file_name": "src/main.rs", "text": WORDS},
    "CulturaX": {"text": WORDS, "timestamp": "2020", "url": JPG, "source": "mC4"},
    "DCLM": {"text": WORDS, "url": JPG, "language_id_whole_page_fasttext": {"en": 0.9}, "metadata": {"WARC-Date": "1"}},
    "Wikipedia": {"id": "12", "url": "https://en.wikipedia.org/wiki/Heron", "title": "Heron.jpg", "text": LONG},
    "Wikipedia, short": {"id": "1", "url": "https://en.wikipedia.org/wiki/File:A.jpg", "title": "A", "text": WORDS},
    "transcripts of films": {"video_id": "x", "video_link": "https://x.org/1", "title": "x", "text": LONG},
    "sentences": {"sentence": WORDS, "url": "https://x.org/1", "source": "news"},
    "a caption alone": {"caption": WORDS, "id": 3},
    "a file's page": {"id": "12", "url": JPG, "title": "File:Heron.jpg", "text": LONG},
    "CC-News": {"title": "x", "text": LONG, "domain": "x.org", "date": "2018", "url": "https://x.org/1",
                "image_url": "https://x.org/a.jpg"},
    "an address and a source": {"text": WORDS, "url": JPG, "source": "https://x.org"},
    "peS2o": {"added": "2023", "created": "2019", "id": "1", "source": "s2orc", "text": WORDS, "version": "v2"},
    "warc fields": {"text": WORDS, "WARC-Target-URI": JPG, "warc_record_id": "u"},
    "camel case": {"text": WORDS, "sourceUrl": JPG, "language": "de"},
}  # fmt: skip
CAPTIONS = {
    "LAION": {"text": WORDS, "url": JPG, "width": 640, "height": 480, "similarity": 0.3},
    "COYO": {"id": 1, "url": JPG, "text": WORDS, "image_phash": "ab", "num_tokens_gpt": 4},
    "CC12M": {"caption": WORDS, "url": JPG},
    "caption beside fields of crawls": {"caption": LONG, "url": JPG, "timestamp": "2020", "source": "cc"},
    "bare": {"text": WORDS, "url": JPG},
    "pic": {"caption": WORDS, "pic": "a.jpg"},
    "pic beside fields of crawls": {"text": WORDS, "pic": "a.jpg", "source": "cc", "language": "en"},
    "image_url": {"text": WORDS, "image_url": JPG, "language": "en"},
    "thumbnail": {"text": LONG, "thumbnail": "t/a.png", "source": "cc", "date": "2020"},
    "a local link": {"text": WORDS, "link": "images/a.jpg", "source": "x"},
    "audio": {"transcription": WORDS, "source_url": "https://x.org/a.mp3", "language": "en"},
    "an address without an ending": {"caption": WORDS, "url": "https://cdn.x.org/7?size=l"},
    "LAION without endings": {"text": WORDS, "url": "https://cdn.x.org/7", "width": 640, "height": 480},
    "similarity": {"text": WORDS, "url": "https://cdn.x.org/7", "clip_similarity": 0.3},
    "the number of its image": {"caption": WORDS, "image_id": 179765},
    "that of its film": {"captions": [WORDS], "video_id": "video0"},
    "that of its sound": {"transcript": WORDS, "audio_id": 3},
    "its duration": {"text": WORDS, "url": "https://x.org/a.mp3", "duration": 3.5},
}


def columns(row) -> dict:
    return {name: [value] for name, value in row.items()}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_texts_are_kept(tmp_path, row):
    (document,), bad = read(manifest(tmp_path, [row]))
    assert not bad and not media(document) and document.kind == "text"
    assert texts(document) in (WORDS, LONG)


def in_tables(tmp_path, rows):
    """(name, documents, what was set aside) of each row in a table of its own."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for name, row in rows.items():
        # a struct without a field has no form in a table
        row = json.loads(json.dumps(row).replace(', "identification": {}', ""))
        pq.write_table(pa.table(columns(row)), tmp_path / "t.parquet")
        yield name, *read(tmp_path / "t.parquet")


def test_texts_are_kept_in_tables(tmp_path):
    for name, documents, bad in in_tables(tmp_path, ROWS):
        assert not bad and len(documents) == 1, name
        assert not media(documents[0]) and texts(documents[0]) in (WORDS, LONG), name


@pytest.mark.parametrize("row", CAPTIONS.values(), ids=CAPTIONS)
def test_captions_are_no_texts(tmp_path, row):
    documents, (bad,) = read(manifest(tmp_path, [row]))
    assert not documents
    assert "names the media file" in bad.reason or "belongs to an image, audio or video" in bad.reason


def test_captions_are_no_texts_in_tables(tmp_path):
    """A path in a column of any name is read there; an address is named."""
    for name, documents, bad in in_tables(tmp_path, CAPTIONS):
        assert all(map(media, documents)) and len(documents) + len(bad) == 1, name


def test_what_is_passed_over_is_noted_where_it_is_an_image(tmp_path):
    source = open_source(manifest(tmp_path, [ROWS["CC-News"], ROWS["C4"]]))
    assert len(list(source.documents())) == 2
    assert source.skipped == {"note: field 'image_url' names media too and was not read": 1}


def test_a_conversation_from_a_page(tmp_path):
    talk = {"messages": [{"role": "assistant", "content": "x"}]}
    (document,), (bad,) = read(manifest(tmp_path, [talk | {"url": JPG, "source": "forum"}, talk | {"img_link": JPG}]))
    assert document.id == "manifest#1" and "'img_link'" in bad.reason


def test_a_path_alone_is_that_of_a_medium_or_a_text(tmp_path):
    lines = [
        {"client_id": "a", "path": "clips/a.mp3", "sentence": "heard"},
        {"path": "a.png", "text": "seen"},
        {"path": "notes/a.txt", "text": "read"},
    ]
    documents, bad = read(manifest(tmp_path, lines))
    assert not bad and [len(media(document)) for document in documents] == [1, 1, 0]


def test_of_several_words_the_first_is_read_and_it_is_noted(tmp_path):
    source = open_source(
        manifest(tmp_path, [{"text": "a", "code": "b", "caption": ""}, {"text": "a", "raw_text": "a"}])
    )
    assert [texts(document) for document in source.documents()] == ["a", "a"]
    assert source.skipped == {"note: fields 'text' and 'code' both hold text, of which the first was read": 1}


@pytest.mark.parametrize("text", ["[a](b) is a link", "[1, 2, 3]", '["a", "b"]', "[", "[]"], ids=str)
def test_a_text_that_begins_like_a_list(tmp_path, text):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"content": [text]}), tmp_path / "t.parquet")
    (document,), bad = read(tmp_path / "t.parquet")
    assert not bad and texts(document) == text


def test_columns_of_media_without_an_ending(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def only(**row):
        pq.write_table(pa.table(columns(row)), tmp_path / "t.parquet")
        documents, bad = read(tmp_path / "t.parquet")
        return media(documents[0]) if documents else bad[0].reason

    assert [path for _, path in only(video="clips/001", caption="x")] == ["clips/001"]
    assert [path for _, path in only(images=["a", "b"], text="x")] == ["a", "b"]
    assert "is remote" in only(image="https://x.org/a.jpg", text="x")
    assert "'data' holds bytes of no image" in only(data=b"\x00unknown", caption="x")
    assert only(sha=b"\x00unknown", text="x") == []


@pytest.mark.parametrize("name", ["url", "source_url", "pageURL", "WARC-Target-URI", "doc_id", "links", "web_link"])
def test_names_of_provenance(name):
    assert is_provenance(name, JPG)


@pytest.mark.parametrize(
    "name", ["pic", "image_url", "img_link", "video_id", "photo", "curl", "page_scan", "avatar", ""]
)
def test_other_names(name):
    assert not is_provenance(name, JPG)
