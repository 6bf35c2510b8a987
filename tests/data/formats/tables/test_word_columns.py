"""The column of words in tables: real layouts whose command is followed to the end, and columns that hold no words."""

import csv
import io
import json
import re

import pytest

from brine.data.formats.open import open_source
from brine.data.formats.tables.text_column import NONE, ONE, SEVERAL, is_text_column_name, text_column, text_content_of
from tests.data.format_files import media, read, texts
from tests.data.formats.tables.test_beside_tables import follow, put
from tests.data.media_files import film

LJ = (
    "LJ001-0001|Printing, in the only sense, which differs|Printing, in the only sense, which is different\n"
    "LJ001-0002|in being comparatively modern.|in being comparatively modern.\n"
    'LJ001-0003|"produced the block books, of 1440|"produced the block books, of fourteen forty\n'
)
LAYOUTS = {
    # files, the table that is given, {medium: words}; nothing where no column holds words
    "LJSpeech": (
        {"wavs/LJ001-0001.wav": "", "wavs/LJ001-0002.wav": "", "wavs/LJ001-0003.wav": "", "metadata.csv": LJ},
        {"wavs/LJ001-0001.wav": "Printing, in the only sense, which is different",
         "wavs/LJ001-0002.wav": "in being comparatively modern.",
         "wavs/LJ001-0003.wav": '"produced the block books, of fourteen forty'},
    ),
    "VCTK": (
        {"wav48/p225/p225_001.wav": "", "wav48/p226/p226_002.wav": "", "metadata.csv":
         "p225_001|Please call Stella.|p225|English\np226_002|Ask her, to bring it.|p226|English\n"},
        {"wav48/p225/p225_001.wav": "Please call Stella.", "wav48/p226/p226_002.wav": "Ask her, to bring it."},
    ),
    "Common VoiceSpec": (
        {"clips/cv_1.wav": "", "clips/cv_2.wav": "", "validated.tsv":
         "client_id\tpath\tsentence_id\tsentence\tup_votes\tage\tgender\tlocale\n"
         "0a1b2c\tcv_1.wav\tf00d\tOne, two.\t2\ttwenties\tmale_masculine\ten\n"
         "0a1b2c\tcv_2.wav\tf11d\tThree\t2\t\t\ten\n"},
        {"clips/cv_1.wav": "One, two.", "clips/cv_2.wav": "Three"},
    ),
    "Flickr8k": (
        {"Images/1_a.jpg": "", "Images/2_b.jpg": "", "captions.txt":
         "image,caption\n1_a.jpg,A child in a pink dress .\n2_b.jpg,\"A girl , going in .\"\n"},
        {"Images/1_a.jpg": "A child in a pink dress .", "Images/2_b.jpg": "A girl , going in ."},
    ),
    "ESC-50": (
        {"audio/1-100032-A-0.wav": "", "audio/1-100038-A-14.wav": "", "meta/esc50.csv":
         "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
         "1-100038-A-14.wav,1,14,chirping_birds,False,100038,A\n"},
        {"audio/1-100032-A-0.wav": "dog", "audio/1-100038-A-14.wav": "chirping_birds"},
    ),
    "UrbanSound8K": (
        {"audio/fold1/1-1.wav": "", "audio/fold5/1-2.wav": "", "metadata/UrbanSound8K.csv":
         "slice_file_name,fsID,salience,fold,classID,class\n1-1.wav,100032,1,1,3,dog_bark\n"
         "1-2.wav,100263,1,5,2,children_playing\n"},
        {"audio/fold1/1-1.wav": "dog_bark", "audio/fold5/1-2.wav": "children_playing"},
    ),
    "WebVid": (
        {"videos/000/10.mp4": "", "videos/001/11.mp4": "", "results_2M_train.csv":
         "videoid,contentUrl,duration,page_dir,name\n10,https://ak.x.net/videos/preview/10.mp4,PT00H00M20S,000,a cat\n"
         "11,https://ak.x.net/11.mp4,PT00H00M01S,001,Aerial view\n"},
        {"videos/000/10.mp4": "a cat", "videos/001/11.mp4": "Aerial view"},
    ),
    "MSR-VTT": (
        {"videos/video9770.mp4": "", "videos/video9771.mp4": "", "MSRVTT_JSFUSION_test.csv":
         "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting\n"
         "ret1,msr9771,video9771,a girl does gymnastics\n"},
        {"videos/video9770.mp4": "a person is connecting", "videos/video9771.mp4": "a girl does gymnastics"},
    ),
    "MSR-VTT names alone": (
        {"videos/video0.mp4": "", "videos/video1.mp4": "", "MSRVTT_train.9k.csv": "video_id\nvideo0\nvideo1\n"}, {},
    ),
    "CelebA": (
        {"img/000001.jpg": "", "img/000002.jpg": "", "list_attr_celeba.csv":
         "image_id,5_o_Clock_Shadow,Arched_Eyebrows,Bald\n000001.jpg,-1,1,-1\n000002.jpg,-1,-1,1\n"}, {},
    ),
    "Conceptual Captions": (
        {"Train_GCC-training.tsv": "a very typical bus, station\thttp://lh6.x.com/-IvR/image.jpg\n"
         "sierra, looked stunning in this top\thttp://x.com/?a=20&b\n"}, {},
    ),
    "Open Images": (
        {"img/0a1.jpg": "", "img/0b2.jpg": "", "images.csv":
         "image_id,original_url,license,author,alt\n0a1,https://x.org/1.jpg,CC BY 2.0,Ann Lee Smith,a dog on grass\n"
         "0b2,https://x.org/2.jpg,CC BY 2.0,Ann Lee Smith,cat\n"},
        {"img/0a1.jpg": "a dog on grass", "img/0b2.jpg": "cat"},
    ),
    "numbers of classes": (
        {"a.png": "", "b.png": "", "labels.csv": "image,label\na.png,3\nb.png,7\n"}, {},
    ),
    "numbers without a header": ({"a.png": "", "b.png": "", "labels.csv": "a.png,3\nb.png,7\n"}, {}),
    "addresses without a header": (
        {"a.png": "", "b.png": "", "urls.csv": "a.png,https://x.org/1\nb.png,https://x.org/2\n"}, {},
    ),
    "words behind addresses without a header": (
        {"a.png": "", "b.png": "", "l.csv": "a.png,https://x.org/1?long=address,a cat\nb.png,https://x.org/2,a dog\n"},
        {"a.png": "a cat", "b.png": "a dog"},
    ),
    "files of words": (
        {"a.wav": "", "b.wav": "", "l.csv": "audio,transcript\na.wav,texts/a.txt\nb.wav,texts/b.txt\n"}, {},
    ),
    "addresses called captions": (
        {"a.png": "", "b.png": "", "l.csv":
         "image,caption,alt\na.png,https://x.org/1,a cat\nb.png,https://x.org/2,a dog\n"},
        {"a.png": "a cat", "b.png": "a dog"},
    ),
    "who made it": (
        {"a.png": "", "b.png": "", "l.csv":
         "id,author,license,taken_at\na,Ann Lee Smith,CC BY 2.0,5 May 2020\nb,Bo Xi,CC BY 2.0,6 May 2020\n"}, {},
    ),
    "numbers alone": ({"iris.csv": "sepal_length,petal_width,species\n5.1,0.2,setosa\n4.9,0.2,virginica\n"}, {}),
    "no blanks": (
        {"a.png": "", "b.png": "", "l.csv": "编号,描述,网址\na,一只猫在树上,https://x.org/1\nb,狗在跑,https://x.org/2\n"},
        {"a.png": "一只猫在树上", "b.png": "狗在跑"},
    ),
}  # fmt: skip
TWO = {"a.png": "", "b.png": ""}
SIGNS = {
    # the table, the words of a.png and b.png
    "formulas": ("image,latex\na.png,\\frac{a}{b}\nb.png,\\sqrt{2}\n", ["\\frac{a}{b}", "\\sqrt{2}"]),
    "formulas first": ('formula,image\n\\frac{a}{b}+c,a.png\n"x^2 + y_1 = \\sqrt{2}",b.png\n',
                       ["\\frac{a}{b}+c", "x^2 + y_1 = \\sqrt{2}"]),
    "formulas in braces": ("image,markup\na.png,{x}^{2}\nb.png,{y_1}\n", ["{x}^{2}", "{y_1}"]),
    "formulas among others": ("image,latex,level\na.png,x^{2},easy\nb.png,y_1,hard\n", ["x^{2}", "y_1"]),
    "sums": ("image,expression\na.png,3+4=7\nb.png,5*2=10\n", ["3+4=7", "5*2=10"]),
    "captchas": ("image,label\na.png,2b827\nb.png,x4k9p\n", ["2b827", "x4k9p"]),
    "captchas without a header": ("a.png,2b827\nb.png,x4k9p\n", ["2b827", "x4k9p"]),
    "captchas called otherwise": ("image,value\na.png,2b827\nb.png,abcde\n", ["2b827", "abcde"]),
    "captchas of which most are numbers": ("image,label\na.png,1234\nb.png,x1y2\n", ["1234", "x1y2"]),
    "emoji": ("image,emoji\na.png,\U0001f600\nb.png,\U0001f431\n", ["\U0001f600", "\U0001f431"]),
    "positions": ("image,fen\na.png,8/8/8/8/8/8/8/K6k w - - 0 1\nb.png,k7/8/8/8/8/8/8/K7 b - - 0 1\n",
                  ["8/8/8/8/8/8/8/K6k w - - 0 1", "k7/8/8/8/8/8/8/K7 b - - 0 1"]),
    "plates": ("image,plate\na.png,AB-123\nb.png,XY-987\n", ["AB-123", "XY-987"]),
    "license plates": ("image,license_plate,width\na.png,7ABC123,80\nb.png,B MW 12,90\n", ["7ABC123", "B MW 12"]),
    "plates of states": ("image,plate,state\na.png,7ABC123,Ohio\nb.png,4XYZ987,Utah\n", ["7ABC123", "4XYZ987"]),
    "numbers of plates": ("image,plate_number,at\na.png,7ABC123,Ohio\nb.png,4XYZ987,Utah\n", ["7ABC123", "4XYZ987"]),
    "molecules": ("image,smiles\na.png,CC(=O)O\nb.png,C1=CC=CC=C1\n", ["CC(=O)O", "C1=CC=CC=C1"]),
    "domains called text": ("image,text\na.png,example.com\nb.png,hello.world\n", ["example.com", "hello.world"]),
    "numbers called text": ("image,text\na.png,4711\nb.png,0815\n", ["4711", "0815"]),
    "codes called Caption": ("image,Caption\na.png,X-1\nb.png,X-2\n", ["X-1", "X-2"]),
    "some addresses": ("image,caption\na.png,https://x.org\nb.png,at the sea\n", ["https://x.org", "at the sea"]),
    "flags called text": ("image,transcription\na.png,yes\nb.png,no\n", ["yes", "no"]),
    "one word": ("image,species\na.png,heron\nb.png,wren\n", ["heron", "wren"]),
}  # fmt: skip
NO_SIGNS = {
    "addresses called text": "image,text\na.png,https://x.org/1\nb.png,https://x.org/2\n",
    "files called captions": "image,caption\na.png,a.dat\nb.png,b.dat\n",
    "addresses": "image,link\na.png,https://x.org/1\nb.png,https://x.org/2\n",
    "numbers": "image,score\na.png,0.5\nb.png,-1e3\n",
    "names of files": "image,other\na.png,a.npy\nb.png,x/b\n",
    "JSON": 'image,boxes\na.png,"{""x"": 1}"\nb.png,"[[1, 2]]"\n',
    "hashes": "image,data\na.png,0123456789abcdef0123\nb.png,fedcba98765432100123\n",
    "dates": "image,when\na.png,2020-01-05T10:20:30Z\nb.png,5 May 2020\n",
    "measures": "image,size\na.png,10x20\nb.png,3.5 kg\n",
    "ids": "image,speaker_id\na.png,p225\nb.png,p226\n",
    "several codes": "image,shelf,box\na.png,A-1,B2\nb.png,A-2,B3\n",
}


@pytest.mark.parametrize("table, wanted", SIGNS.values(), ids=SIGNS)
def test_formulas_and_codes_are_words_of_a_medium(tmp_path, table, wanted):
    """Of formulas it was said that no column holds words, and a column that was called text was dropped."""
    root = put(tmp_path / "set", TWO | {"t.csv": table})
    follow(root)
    documents, bad = read(root)
    assert not bad and {path: texts(document) for document in documents for _, path in media(document)} == dict(
        zip(TWO, wanted, strict=True)
    )


@pytest.mark.parametrize("table", NO_SIGNS.values(), ids=NO_SIGNS)
def test_other_cells_are_no_words_and_none_is_lost(tmp_path, table):
    root = put(tmp_path / "set", TWO | {"a.dat": "", "b.dat": "", "t.csv": table})
    said = follow(root)
    assert "none of them holds text" in said
    assert ("or call one so ('shelf', 'box')" in said) == ("shelf" in table)
    assert ("is kept as" in said) == ("text" in table or "caption" in table)
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    cells = [set(row) for row in csv.reader(io.StringIO(table))][1:]
    assert [set(row.values()) for row in rows] == cells and not any({"text", "caption"} & row.keys() for row in rows)


@pytest.fixture(scope="module")
def a_film(tmp_path_factory):
    film(path := tmp_path_factory.mktemp("film") / "a.mp4", 0.2)
    return path.read_bytes()


@pytest.mark.parametrize("files, wanted", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_followed_to_its_end(tmp_path, a_film, files, wanted):
    """WebVid's videos were learned with their addresses as captions, and CelebA's faces with -1."""
    root = put(tmp_path / "set", files)
    for path in root.rglob("*.mp4"):
        path.write_bytes(a_film)
    table = root / next(reversed(files))
    said = follow(root if table.suffix == ".txt" else table)
    written = next(path for path in root.rglob("*.jsonl"))
    documents, bad = read(written)
    assert {path: texts(document) for document in documents for _, path in media(document)} == wanted
    assert len(documents) == len(wanted) and bool(bad) == (not wanted)
    if not wanted and "not fetched" not in said:
        assert "hold text" in said or "holds text" in said, said
        assert all("text" not in json.loads(line) for line in written.read_text().splitlines())


CELLS = {
    "a cat": SEVERAL, "2 dogs": ONE, "cat": ONE, "dog_bark": ONE, "A cat, see http://x.org": SEVERAL, "größe": ONE,
    "一只猫在树上": SEVERAL, "and/or so": SEVERAL, "Don't!": ONE, "may I": SEVERAL, '["a cat", "a dog"]': SEVERAL,
    "http://x.org/a cat": ONE,
    **dict.fromkeys(("", " ", "-", "7", "-1.5e3", "1,5", "1 -1 1", "[1, 2]", "2020-01-05", "5 May 2020"), NONE),
    **dict.fromkeys(("PT00H00M20S", "3.5 s", "10:20:30", "10 min", "1920 x 1080", "http://x.org", "www.x.org"), NONE),
    **dict.fromkeys(('[{"left": 1, "top": 2}]', "#FFEEDD", "48.1 N, 11.5 E"), NONE),
    "vitamin B 12": SEVERAL, "I see a 7": SEVERAL,
    **dict.fromkeys(("a.txt", "x/y/z", "C:\\x\\y", "my photo.jpg", "a/b c.png", "p225", "LJ1-01", "s3:/b"), NONE),
    **dict.fromkeys(("dQw4w9WgXcQ", "True", "male", "M", "null", "jpg", "train", "a@b.org", "{1: 1}", "x" * 99), NONE),
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_what_cells_hold(cell):
    assert text_content_of([cell]) == CELLS[cell]


@pytest.mark.parametrize("name", ["alt", "alt_text", "caption_en", "Bildbeschreibung_text", "image_title", "altText"])
def test_names_of_words(name):
    assert is_text_column_name(name)


@pytest.mark.parametrize("name", ["caption_id", "label_source", "text_length", "name", "salt_level", "url", ""])
def test_names_of_other_columns(name):
    assert not is_text_column_name(name)


def test_name_goes_last():
    rows = [["a cat on a mat", "x y"], ["a dog", "z z"]]
    assert text_column(rows, names=["name", "remark"]) == 1
    assert text_column(rows, names=["name", "id"]) == 0
    assert text_column([["cat", "a"], ["dog", "b"]], names=["species", "x"], of_media=False) is None


def test_lists_of_numbers_paths_and_speakers_are_no_words(tmp_path):
    """Kaldi's wav.scp gave every utterance its path as words, and CelebA's lists gave numbers."""
    files = {"list_attr.txt": "a.png -1 1 -1\nb.png 1 1 1\n", "split.txt": "a.png,0\nb.png,1\n"}
    with pytest.raises(ValueError) as caught:
        open_source(put(tmp_path / "celeba", {"a.png": "", "b.png": "", **files}))
    assert not re.search("has its text in", str(caught.value))
    files = {
        "a/wav.scp": "u1 /data/u1.wav\nu2 /data/u2.wav\n",
        "a/utt2spk": "u1 ann\nu2 bo\n",
        "words": "u1 HI\nu2 YOU\n",
    }
    with pytest.raises(ValueError, match="has its text in 'words'"):
        open_source(put(tmp_path / "kaldi", {"w/u1.wav": "", "w/u2.wav": "", **files}))
