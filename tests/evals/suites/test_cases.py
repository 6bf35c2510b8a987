"""A case is its content: its id, its part and its rank depend on nothing else, and nothing else is read."""

from collections import Counter

import pytest

from brine.data.document import Audio, Image, Text, Video
from brine.evals.suites.case import (
    PARTS,
    SuiteCase,
    SuiteNeedles,
    SuiteQuestion,
    content_id,
    parse_case,
    part_of_id,
    rank_of_id,
    transcription_in,
)

PNG, WAV, MP4 = (f"media/{letter * 64}.{ending}" for letter, ending in (("a", "png"), ("b", "wav"), ("c", "mp4")))


def case_of_parts(*parts, questions=(), **more):
    name = content_id(parts, questions)
    return SuiteCase(name, part_of_id(name), "page", 2, parts, **more)


def test_the_id_is_that_of_the_content():
    """Golden: ids name the cases of all suites that were ever made."""
    assert content_id((Image(PNG), Text("ab"))) == "576a83637e2d131595c62883226857e7e9a7eb1b792463d62b0e964b1544a62a"


def test_what_is_content_changes_the_id_and_what_is_not_does_not():
    base = content_id((Image(PNG), Text("ab")))
    others = [
        (Text("ab"), Image(PNG)), (Image(PNG), Text("a"), Text("b")), (Image(PNG), Text("ab", loss_mask=False)),
        (Audio(PNG), Text("ab")), (Image(PNG.replace("aa", "dd")), Text("ab")), (Video(PNG), Text("ab")),
        (Video(PNG, use_audio=False), Text("ab")),
    ]  # fmt: skip
    ids = [base, *(content_id(parts) for parts in others), content_id((Image(PNG), Text("ab")), (asked("?A", "1"),))]
    assert len(set(ids)) == len(ids)
    assert content_id((Image(PNG.replace("png", "jpg"), role="user"), Text("ab", role="assistant"))) == base


def asked(question, answer):
    return SuiteQuestion(question, answer, 0.5)


def test_parts_are_thirds_and_do_not_depend_on_the_seed():
    ids = [content_id((Text(str(number)),)) for number in range(3000)]
    counts = Counter(part_of_id(name) for name in ids)
    # three standard deviations of 3000 draws are 77
    assert set(counts) == set(PARTS) and all(abs(count - 1000) < 80 for count in counts.values())
    by_rank = [sorted(ids, key=lambda name: rank_of_id(name, seed)) for seed in (0, 1)]
    assert by_rank[0] != by_rank[1]
    # the lowest ranks hold all parts: the two hashes are independent
    assert min(Counter(map(part_of_id, by_rank[0][:300])).values()) > 60


def test_a_case_survives_its_file():
    questions = (asked("?ABC", "47"), asked("?XYZ", "03"))
    needles = SuiteNeedles(256, "image", questions)
    for case in (
        case_of_parts(Text("x", loss_mask=False), Video(MP4, use_audio=False), questions=questions, needles=needles),
        case_of_parts(Image(PNG), Text("words"), transcription=transcription_in((Image(PNG), Text("words")))),
    ):
        assert parse_case(case.to_json()) == case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": [{"type": "image", "image": "../secret.png"}]}, "leaves the manifest's folder"),
        ({"content": [{"type": "image", "image": "media/x.png"}]}, r"not media/<SHA-256>"),
        ({"content": [{"type": "image", "image": "/etc/passwd"}]}, "not relative"),
        ({"content": [{"type": "image", "image": f"media/{'a' * 64}.png/../../x"}]}, r"not media/<SHA-256>"),
        ({"content": [{"type": "text", "text": "other"}]}, "not the hash of its content"),
        ({"part": "gate"}, "its id says"),
        ({"part": None}, "its id says"),
        ({"transcription": {"modality": "image"}}, "transcription must be an object"),
        ({"transcription": {"modality": "smell", "reference": "x"}}, "none of image, audio, video"),
        ({"needle": {"length": "2", "modality": "text", "questions": []}}, "needle must be an object"),
        ({"id": 3}, "'id' must be of type str"),
    ],
)
def test_a_line_that_is_no_case_is_refused(change, message):
    case = next(c for n in range(9) if (c := case_of_parts(Image(PNG), Text(f"words {n}"))).part != "gate")
    with pytest.raises(ValueError, match=message):
        parse_case(case.to_json() | change)


def test_what_is_transcribed():
    told = transcription_in((Text("What is this? "), Image(PNG), Text("Q: ", loss_mask=False), Text("a "), Text("cat")))
    assert (told.modality, told.reference) == ("image", "a cat")
    told = transcription_in((Video(MP4), Text("seen"), Text(" and more", loss_mask=False), Text("not this")))
    assert (told.modality, told.reference) == ("video", "seen")
    assert transcription_in((Image(PNG), Text("one"), Audio(WAV), Text("two"))) is None
    assert transcription_in((Text("before"), Image(PNG))) is None
    assert transcription_in((Text("only text"),)) is None
    assert transcription_in((Image(PNG), Text("never a target", loss_mask=False))) is None
