"""Needles stand where they are said to, contexts are as long as claimed, and the answer stands nowhere else."""

import json
import random
import re

import numpy as np
import pytest

from brine.data.config import EncodeConfig
from brine.data.files.source_files import SourceFile
from brine.data.tokenizer import MEDIA_START_ID, MEDIA_TOKEN_ID, train_tokenizer
from brine.synth import SynthConfig, SynthCounts, build_synth_corpus
from brine.synth.needles import needle
from brine.synth.needles.haystacks import MULTIKEY, TASKS, HaystackBuilder
from brine.synth.needles.needle import LEVEL_TOKENS, NeedleDocuments

SOURCE = [
    SourceFile(f"module_{number}.py", "python", "".join(f"value_{n} = compute(item, {n})  # WXY\n" for n in range(40)))
    for number in range(3)
]
ENCODE = EncodeConfig(tubelet_frames=1)
NEEDLES = 4


@pytest.fixture(scope="module")
def tokenizer():
    """A plain byte model: ids and characters are the same thing."""
    return train_tokenizer(["ab"], 267)


@pytest.fixture(scope="module")
def haystacks(tokenizer):
    with HaystackBuilder(SOURCE, tokenizer=tokenizer, config=ENCODE, seed=3) as made:
        yield made


def spelt(tokenizer, sequence, *, start=0):
    """Text of a sequence with each medium's opening token as "<"."""
    ids = sequence.token_ids[start:]
    opens = np.isin(ids, list(MEDIA_START_ID.values()))
    return "".join("<" if is_open else tokenizer.decode([token]) for token, is_open in zip(ids, opens, strict=True))


def test_values_and_keys_do_not_collide():
    rng, taken = random.Random(0), set()
    needles = [needle.draw_needle("text", rng, taken=taken) for _ in range(3000)]
    assert len({fact.key for fact in needles}) == len(needles)
    values = {fact.value for fact in needles}
    assert len(values) == needle.NUM_VALUES == 100
    assert pytest.approx(1 / len(values)) == needle.CHANCE
    # what is drawn or spoken for different values differs too, whatever else was drawn
    for modality in ("image", "audio", "video"):
        shown = {}
        for value in sorted(values):
            recipe = needle.media_spec(modality, value, random.Random(5))
            shown[json.dumps(recipe, sort_keys=True)] = value
        assert len(shown) == len(values)


def test_keys_run_out_with_a_message():
    everything = range(26**3)
    with pytest.raises(ValueError, match="fewer needles"):
        needle.draw_key(random.Random(0), taken=everything)


def test_unknown_modality_is_named():
    with pytest.raises(ValueError, match=r"'smell'.*text, image"):
        needle.draw_needle("smell", random.Random(0), taken=set())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_tokens", [400, 1111])
def test_lengths_and_depths_are_as_claimed(haystacks, tokenizer, task, num_tokens):
    context = haystacks.make(task, num_tokens=num_tokens, number=1, num_needles=NEEDLES)
    assert len(context.questions) == NEEDLES
    for number, question in enumerate(context.questions):
        assert len(context.sequence) + len(question.prompt) == num_tokens
        start = round(question.depth * len(context.sequence))
        assert spelt(tokenizer, context.sequence, start=start).startswith(f"@{question.key}")
        # one in each equal part; a boundary of the haystack may push it over the part's end
        assert number / NEEDLES - 0.15 <= question.depth <= (number + 1) / NEEDLES + 0.15
        assert question.prompt.position[0, 0] == context.sequence.position[-1].max() + 1
        assert tokenizer.decode(question.prompt.token_ids.tolist()) == f"?{question.key}"


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_stands_nowhere_else(haystacks, tokenizer, task):
    context = haystacks.make(task, num_tokens=1111, number=2, num_needles=NEEDLES)
    text = spelt(tokenizer, context.sequence)
    for question in context.questions:
        assert text.count(question.key) == 1
        follows = text[text.index(question.key) + 3 :]
        if task in ("text", MULTIKEY):
            assert follows.startswith(f"{question.answer}\n")
        else:
            assert follows.startswith("<")
        if task == "chain":
            second, value = question.answer[:3], question.answer[3:]
            assert text.count(second) == 1 and re.search(f"@{second}<", text)
            assert len(value) == 2
    assert "?" not in text.replace("<", "")


def test_depths_cover_the_context(haystacks):
    depths = [
        question.depth
        for number in range(20)
        for question in haystacks.make("text", num_tokens=600, number=number, num_needles=10).questions
    ]
    share, _ = np.histogram(depths, bins=10, range=(0, 1))
    assert share.min() >= 8 and min(depths) < 0.03 and max(depths) > 0.95


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(haystacks, tokenizer):
    def digest(made, task):
        context = made.make(task, num_tokens=500, number=0, num_needles=NEEDLES)
        return context.sequence.crc32(), [(q.key, q.answer, q.depth) for q in context.questions]

    with (
        HaystackBuilder(SOURCE, tokenizer=tokenizer, config=ENCODE, seed=3) as again,
        HaystackBuilder(SOURCE, tokenizer=tokenizer, config=ENCODE, seed=4) as other,
    ):
        # in another order, so that nothing hangs on what was made before
        found = {task: digest(again, task) for task in reversed(TASKS)}
        for task in TASKS:
            assert found[task] == digest(haystacks, task)
            assert found[task] != digest(other, task)


def test_keys_of_the_source_are_not_drawn(haystacks):
    assert "WXY" in haystacks.keys_in_source


@pytest.mark.parametrize(
    ("task", "length", "message"), [("audio", 100, "do not fit into 100"), ("smell", 100, "choose from text")]
)
def test_impossible_contexts_are_refused(haystacks, task, length, message):
    with pytest.raises(ValueError, match=message):
        haystacks.make(task, num_tokens=length, number=0)


@pytest.mark.parametrize("modality", needle.NEEDLE_MODALITIES)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_every_question_of_a_training_document_follows_its_needle(modality, level):
    documents = NeedleDocuments([item.text for item in SOURCE], random.Random(f"{modality}{level}"))
    for _ in range(10):
        parts = documents.document(modality, level)
        seen, before = {}, ""
        for place, (part, loss_mask) in enumerate(parts):
            if isinstance(part, dict):
                # the text in front of a medium ends with the key that it belongs to, or it is a distractor
                stated = re.search(r"@([A-Z]{3})$", before)
                if stated:
                    seen[stated.group(1)] = shown_by(part)
                before = ""
            elif loss_mask:
                asked = re.search(r"\?([A-Z]{3})$", before).group(1)
                said = part.removesuffix("\n")
                assert seen[asked] == said[:3] if modality == "chain" else seen[asked] == said
                if modality == "chain":
                    assert seen[said[:3]] == said[3:]
                before = ""
            else:
                before = part
                seen |= dict(re.findall(r"@([A-Z]{3})(\d\d)\n", part))
            assert place or not loss_mask
        assert sum(loss_mask for _, loss_mask in parts) >= 1
        assert sum(len(part) for part, _ in parts if isinstance(part, str)) <= 1.2 * LEVEL_TOKENS[level]


def shown_by(recipe):
    """What a medium shows, as an answer spells it."""
    if recipe["type"] == "audio":
        return "".join(str(needle.DIGITS.index(word)) for word in recipe["text"].split())
    return next(line for line in recipe["lines"] if line.isdigit() or line.isupper())


@pytest.mark.slow
def test_documents_are_built_with_their_media(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number, item in enumerate(SOURCE):
        (source / item.path).write_text(item.text.replace("compute", f"compute_{number}" * (number + 1)))
    counts = SynthCounts(**{f"needle_{name}": (2, 0, 0, 0) for name in needle.NEEDLE_MODALITIES})
    config = SynthConfig(
        source=source,
        train=counts,
        validation=SynthCounts(),
        test=SynthCounts(),
        validation_fraction=0,
        test_fraction=0,
        workers=1,
    )
    summary = build_synth_corpus(config, tmp_path / "corpus", progress=False)
    assert summary["shortfalls"] == [] and summary["failed"] == {}
    lines = [json.loads(line) for line in (tmp_path / "corpus" / "manifest.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {f"needle_{name}" for name in needle.NEEDLE_MODALITIES}
    for line in lines:
        answers = [part["text"] for part in line["content"] if part["type"] == "text" and part["loss_mask"]]
        assert answers and all(re.fullmatch(r"([A-Z]{3})?\d\d\n", answer) for answer in answers)
        for part in line["content"]:
            if part["type"] != "text":
                assert (tmp_path / "corpus" / part[part["type"]]).stat().st_size > 0


def test_the_curriculum_gives_each_level_and_modality_its_share_of_the_tokens():
    from brine.data.packing.mixture import Mixture
    from brine.recipes.needle import CURRICULUM, DOCUMENT_COUNTS, curriculum
    from brine.recipes.needle import needle as recipe

    weights = dict(Mixture.parse(recipe().packing.mixture).weights)
    assert curriculum() == recipe().packing.mixture and len(weights) == 20
    for start, stop, levels, modalities in CURRICULUM:
        assert sum(levels) == pytest.approx(1) and sum(modalities) == pytest.approx(1)
        for at in (start, (start + stop) / 2, stop):
            tokens = {
                key: np.interp(at, *np.array(points).T)
                * DOCUMENT_COUNTS[key[12:-2]][int(key[-1]) - 1] * 0.75 * LEVEL_TOKENS[int(key[-1])]
                for key, points in weights.items()
            }  # fmt: skip
            total = sum(tokens.values())
            for number, modality in enumerate(needle.NEEDLE_MODALITIES):
                for level in LEVEL_TOKENS:
                    share = tokens[f"kind:needle_{modality}/{level}"] / total
                    assert share == pytest.approx(levels[level - 1] * modalities[number], abs=1e-3)


def test_one_frame_of_a_film_bears_the_value(haystacks):
    """Each card is one sampled frame, two patches wide; the cards without a value differ from the one with it."""
    context = haystacks.make("video", num_tokens=600, number=0, num_needles=2)
    assert (context.sequence.token_ids == MEDIA_TOKEN_ID["video"]).sum() % 2 == 0
    recipe = needle.video_spec(["abcd", "47", "efgh"], style="bw")
    kind, decoded = haystacks._media(recipe)
    assert kind == "video" and len(decoded.layout.tubelet_s) == 3 and decoded.layout.grid == (1, 2)
    frames = decoded.patches.reshape(3, 2, -1).astype(int)
    # the value takes one patch of its frame, the other is blank
    assert np.ptp(frames[1, 1]) < 40 < np.ptp(frames[1, 0])
