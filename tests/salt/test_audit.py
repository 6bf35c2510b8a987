"""The audit of pseudo-labels: what counts as right, the threshold of a kind, and when a kind is refused."""

import json
import math
import random

import numpy as np
import pytest
from PIL import Image

from brine.common.files import file_digest
from brine.data.corpus.readers import read_manifest
from brine.data.document import Document, Text, parse_document
from brine.data.document import Image as ImagePart
from brine.inference.load import WEIGHTS
from brine.salt import audit as audit_module
from brine.salt.audit import (
    AuditConfig,
    AuditedAnswer,
    AuditResult,
    audit_answers,
    audit_pseudo_labels,
    audited_split,
    compare_words,
    is_auditable,
    is_audited,
    precision_lower_bound,
)
from brine.salt.content import ContentHasher
from brine.salt.pseudo_label import PSEUDO_LABEL_SUFFIX, PseudoLabel, PseudoLabelConfig, pseudo_label
from tests.salt.test_pseudo_label import loaded, manifest, one_thread  # noqa: F401

CONFIG = AuditConfig(aim=0.9)


def answers(right: list[bool], *, kind="page", confidence=None) -> list[AuditedAnswer]:
    """Answers by falling confidence."""
    confidence = confidence or [-0.01 * (n + 1) for n in range(len(right))]
    return [AuditedAnswer(kind, one, ok, float(ok)) for one, ok in zip(confidence, right, strict=True)]


@pytest.mark.parametrize("right,total", [(1, 1), (50, 51), (9, 10), (180, 200), (200, 200), (3, 77)])
def test_lower_bound_is_clopper_and_pearsons(right, total):
    """At the bound, seeing as many right answers or more has exactly the probability of error."""
    bound = float(precision_lower_bound(np.array([right]), np.array([total]), error=0.05)[0])
    tail = math.fsum(math.comb(total, n) * bound**n * (1 - bound) ** (total - n) for n in range(right, total + 1))
    assert tail == pytest.approx(0.05, abs=1e-9) and bound < right / total
    assert precision_lower_bound(np.array([0]), np.array([total]), error=0.05)[0] == 0


def test_confident_answers_are_right_and_the_threshold_parts_them():
    found = audit_answers(answers([True] * 200 + [False] * 200), CONFIG)["page"]
    # at half of the answers all are right; at 60 % 200 of 240 are
    assert found.min_confidence == pytest.approx(-2.0) and not found.reason
    assert [point.accepted for point in found.curve] == [40 * n for n in range(1, 11)]
    assert [point.precision for point in found.curve[:5]] == [1.0] * 5 and found.exact == 0.5
    accepted = [point for point in found.curve if point.min_confidence >= found.min_confidence]
    assert accepted[-1].lower >= 0.9 and all(point.lower < 0.9 for point in found.curve[5:])


def test_aim_and_threshold_rise_together():
    rng = random.Random(0)
    made = answers([rng.random() < 1 - 0.3 * (n / 600) ** 2 for n in range(600)])
    thresholds = []
    for aim in (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.99):
        found = audit_answers(made, AuditConfig(aim=aim))["page"]
        thresholds.append(math.inf if found.min_confidence is None else found.min_confidence)
    assert thresholds == sorted(thresholds) and len(set(thresholds)) > 3 and thresholds[-1] == math.inf


@pytest.mark.parametrize("aim", [0.9, 0.95])
def test_shuffled_labels_fall_below_the_aim_and_the_kind_is_refused(aim):
    """A perfect model whose words are exchanged among 10 % of the documents, whatever their confidence."""
    rng = random.Random(3)
    words = [f"line {n}" for n in range(500)]
    shuffled = rng.sample(range(500), 50)
    said = dict(zip(shuffled, shuffled[1:] + shuffled[:1], strict=True))
    given = [AuditedAnswer("page", -rng.random(), *compare_words(words[said.get(n, n)], words[n])) for n in range(500)]
    given += answers([True] * 300, kind="photo")
    found = audit_answers(given, AuditConfig(aim=aim))
    assert found["page"].min_confidence is None and f"below the aim of {aim:g}" in found["page"].reason
    assert found["page"].exact == pytest.approx(0.9)
    assert found["photo"].min_confidence is not None, "other kinds do not suffer"


def test_few_documents_are_refused_however_right():
    least = CONFIG.min_documents
    refused = audit_answers(answers([True] * (least - 1)), CONFIG)["page"]
    assert refused.min_confidence is None and f"fewer than {least}" in refused.reason and refused.exact == 1
    assert audit_answers(answers([True] * least), CONFIG)["page"].min_confidence is not None


def test_a_kind_at_the_aim_is_seldom_accepted():
    """Thresholds are chosen after looking at ten: still at most 5 % of kinds whose precision is below the aim pass."""
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(400):
        right = (rng.random(300) < 0.899).tolist()
        accepted += audit_answers(answers(right), CONFIG)["page"].min_confidence is not None
    assert accepted <= 0.05 * 400
    passing = sum(
        audit_answers(answers((rng.random(300) < 0.97).tolist()), CONFIG)["page"].min_confidence is not None
        for _ in range(100)
    )
    assert passing >= 90, "an audit that refuses everything is of no use"


def test_answers_that_cannot_be_kept_do_not_count():
    given = answers([True] * 100) + [AuditedAnswer("page", -0.001, False, 0.0, "unfinished")] * 70
    found = audit_answers([*given, AuditedAnswer("page", math.nan, False, 0.0, "file is missing")], CONFIG)["page"]
    assert found.min_confidence is not None and found.documents == 171
    assert found.unusable == {"file is missing": 1, "unfinished": 70}


def test_equal_confidences_are_accepted_together():
    found = audit_answers(answers([True] * 60 + [False] * 60, confidence=[-0.5] * 120), CONFIG)["page"]
    assert found.min_confidence is None and [point.accepted for point in found.curve] == [120]


@pytest.mark.parametrize(
    "words,known,exact",
    [
        ("def f():\n", "def f():", True),
        ("a  \r\nb", "a\nb", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("a b", "a  b", False),
        ("Word", "word", False),
        ("07", "7", False),
        ("", "x", False),
    ],
)
def test_what_is_equal(words, known, exact):
    assert compare_words(words, known)[0] is exact


def test_character_accuracy_decides_when_asked():
    assert compare_words("kitten", "sitting")[1] == pytest.approx(1 - 3 / 7) and compare_words("x" * 9, "y")[1] == 0
    given = [AuditedAnswer("page", -0.1 - n / 1000, False, 0.97) for n in range(200)]
    assert audit_answers(given, CONFIG)["page"].min_confidence is None
    config = AuditConfig(decides="characters", min_character_accuracy=0.95)
    assert audit_answers(given, config)["page"].min_confidence is not None
    stricter = AuditConfig(decides="characters", min_character_accuracy=0.98)
    assert audit_answers(given, stricter)["page"].min_confidence is None


def picture_documents(root, count=400, split="train") -> list[Document]:
    (root / "media").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(root / "media/one.png")
    return [
        Document(f"d{n}", (ImagePart("media/one.png"), Text(f"words {n}\n")), "photo", split=split)
        for n in range(count)
    ]


def test_choice_depends_on_content_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, there = picture_documents(tmp_path / "a"), picture_documents(tmp_path / "b", 800)
    one, other = ContentHasher(tmp_path / "a"), ContentHasher(tmp_path / "b")
    chosen = {document.parts[1].text for document in here if is_audited(document, one, CONFIG)}
    renamed = [Document(f"other-{d.id}", d.parts, "page", 3, "validation", "elsewhere") for d in there]
    again = {document.parts[1].text for document in renamed if is_audited(document, other, CONFIG)}
    assert 20 <= len(chosen) <= 60, "about a tenth"
    assert again & {document.parts[1].text for document in here} == chosen, "new documents displace none"
    moved = list(audited_split(here, one, CONFIG))
    assert {d.parts[1].text for d in moved if d.split == "validation"} == chosen
    assert [d.with_split("train") for d in moved] == here


def test_only_words_that_follow_media_can_be_audited():
    image = {"type": "image", "image": "a.png"}
    words, asked = {"type": "text", "text": "words"}, {"type": "text", "text": "What?", "loss_mask": False}
    for content, expected in [
        ([image, words], True),
        ([image, asked, words], True),
        ([words, image], False),
        ([image, words, image], False),
        ([image, asked], False),
        ([words], False),
        ([image, {"type": "text", "text": " \n"}], False),
    ]:
        assert is_auditable(parse_document({"id": "x", "content": content})) is expected, content


def test_audit_of_a_model_and_its_use(loaded, tmp_path, monkeypatch):  # noqa: F811
    """Answers that equal the known words in 10 % exchanged order: refused; others are used by `pseudo_label`."""
    documents = [
        *picture_documents(tmp_path, 300),
        *(d.with_split("test") for d in picture_documents(tmp_path, 20)),
    ]
    lines = [
        document.to_json() | {"id": f"{document.id}-{number}", "kind": kind}
        for number, (document, kind) in enumerate((d, k) for d in documents for k in ("photo", "scan"))
    ]
    for number, line in enumerate(lines):
        line["content"][1]["text"] = f"{line['kind']} {number}"
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = {line["id"]: line["content"][1]["text"] for line in lines}

    def answered(_loaded, prompts, root, *, config, **_options):
        assert config.min_confidence == -math.inf and root == tmp_path
        for number, document in enumerate(prompts):
            assert all(not isinstance(part, Text) or not part.loss_mask for part in document.parts)
            words = known[document.id] if document.kind == "photo" or number % 10 != 1 else "another line"
            named = Document(document.id + PSEUDO_LABEL_SUFFIX, document.parts, document.kind)
            yield PseudoLabel(named, words, 3, -0.01 * (1 + number % 7))

    monkeypatch.setattr(audit_module, "answer_prompts", answered)
    config = AuditConfig(fraction=1.0, aim=0.95)
    found = audit_pseudo_labels(loaded, path, config=config)
    monkeypatch.undo()
    assert found.counts == {"read": 640, "audited": 600, "in_training": 600}, "the test split is not touched"
    assert found.min_confidence["photo"] == pytest.approx(-0.07) and found.min_confidence["scan"] is None
    assert found.origin == file_digest(loaded.folder / WEIGHTS)
    found.save(tmp_path / "audit")
    assert AuditResult.load(tmp_path / "audit") == found and "below the aim" in found.table()
    (tmp_path / "audit/audit.json").write_text("[]")
    with pytest.raises(ValueError, match="not the result of an audit"):
        AuditResult.load(tmp_path / "audit")


def test_thresholds_by_kind_take_the_place_of_the_constant(loaded, manifest):  # noqa: F811
    config = PseudoLabelConfig(min_confidence=0.0, max_tokens=8)
    with_all = pseudo_label(
        loaded, manifest, manifest.parent / "by_kind.jsonl", config=config, min_confidence={"photo": -99.0}
    )
    assert with_all["kept"] > 0 and "unsure" not in with_all and with_all["kind_not_audited"] == 1
    kept = list(read_manifest(manifest.parent / "by_kind.jsonl"))
    assert {document.kind for document in kept} == {"photo-pseudo"}
    summary = json.loads((manifest.parent / "by_kind.summary.json").read_text())
    assert summary["min_confidence"] == {"photo": -99.0}
    refused = pseudo_label(
        loaded, manifest, manifest.parent / "refused.jsonl", config=config, min_confidence={"photo": None}
    )
    assert refused["kept"] == refused["prompted"] == 0 and refused["kind_refused"] == 24


@pytest.mark.slow
def test_audit_asks_the_real_model(loaded, manifest, tmp_path):  # noqa: F811
    """A model that knows nothing is right never."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()[:24]]
    for line in lines:
        line["content"].append({"type": "text", "text": "true words"})
    path = manifest.parent / "worded.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    label_config = PseudoLabelConfig(max_tokens=8)
    found = audit_pseudo_labels(loaded, path, config=AuditConfig(fraction=1.0), label_config=label_config)
    assert found.kinds["photo"].documents == 24 and found.min_confidence == {"photo": None}
    assert found.kinds["photo"].exact == 0 and "too few" in found.kinds["photo"].reason


@pytest.mark.parametrize(
    "settings", [{"aim": 1.0}, {"fraction": 0}, {"num_thresholds": 0}, {"decides": "x"}, {"confidence_level": 0}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="AuditConfig"):
        AuditConfig(**settings)
