"""The collapse watch: its statistics by hand, chance does not set it off, and a line that feeds on itself does."""

import random
from collections import Counter, defaultdict

import pytest

from brine.data.document import Document, Text
from brine.data.files.source_files import read_source
from brine.data.tokenizer import train_tokenizer
from brine.salt.collapse import CollapseConfig, text_statistics, watch_collapse, watch_kinds
from brine.salt.pseudo_pool import max_pseudo_targets
from brine.salt.self_play.model_answers import ModelAnswers
from tests.paths import ROOT
from tests.salt.test_pseudo_label import one_thread  # noqa: F401
from tests.salt.tiny_training import train_tiny

END = ""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Lines of four words and more of a part of the project's own code."""
    files, _ = read_source(ROOT / "data")
    found = dict.fromkeys(line.strip() for item in files for line in item.text.split("\n") if len(line.split()) > 3)
    return random.Random(0).sample(list(found), 2000)


def test_statistics_by_hand():
    found = text_statistics([["a", "b", "a", "b", "a", "b"], ["c"]])
    assert (found.num_texts, found.num_words, found.mean_words) == (2, 7, 3.5)
    # a and b three times, c once; 5 pairs of which 2 differ; 4 triples, 2 differ; 3 quadruples, 2 differ
    assert found.distinct == (3 / 7, 2 / 5, 2 / 4, 2 / 3) and found.repetition == 1 / 3
    assert found.entropy == pytest.approx(1.448816)
    assert text_statistics([]).distinct == (0, 0, 0, 0) and text_statistics([]).entropy == 0


def test_halves_of_a_corpus_do_not_set_it_off(lines):
    rng = random.Random(1)
    for _ in range(40):
        chosen = rng.sample(lines, 120)
        found = watch_collapse(chosen[:60], {"true": chosen[60:]})
        assert found.outcome == "ok", found.breaches


@pytest.mark.parametrize(
    "broken,breach",
    [
        (lambda lines: lines[:40] * 10, "distinct 1-grams"),
        (lambda lines: [" ".join(line.split()[:1] * 8) for line in lines], "distinct 2-grams"),
        (lambda lines: [line.split()[0] for line in lines * 4], "mean length"),
        (lambda lines: [f"{line} {line}" for line in lines], "repetition"),
        (lambda lines: [" ".join(lines[n : n + 4]) for n in range(0, len(lines), 4)], "mean length"),
        (lambda lines: ["x x" for _ in lines], "entropy"),
        (lambda lines: ["." for _ in lines[:5]], "mean length"),
    ],
)
def test_each_breach_is_named(lines, broken, breach):
    found = watch_collapse(broken(lines[:400]), {"true": lines[1000:1400]})
    assert found.stops and any(breach in one and "of the true" in one for one in found.breaches), found.breaches


def test_too_few_words_decide_nothing(lines):
    few = watch_collapse(lines[:5], {"true": lines[10:14]})
    assert few.outcome == "too few" and not few.stops
    assert watch_collapse([], {"true": lines}).outcome == "too few" and watch_collapse(lines, {}).outcome == "too few"
    with pytest.raises(ValueError, match="CollapseConfig"):
        CollapseConfig(min_distinct_ratio=1.0)


def test_kinds_are_watched_apart(lines):
    texts = {"page": lines[:300], "photo": lines[:20] * 15}
    true = {"page": lines[300:600], "photo": lines[600:900]}
    found = watch_kinds(texts, {"true": true, "first round": {"page": lines[900:1200]}})
    assert found["page"].outcome == "ok" and len(found["page"].compared) == 2 and found["photo"].stops
    assert found["photo"].to_dict()["outcome"] == "collapse"


class Trigrams:
    """A model of three words, with smoothing by shorter contexts."""

    def __init__(self, texts):
        self.counts = [defaultdict(Counter) for _ in range(3)]
        for text in texts:
            words = [END, END, *text.split(), END]
            for at in range(2, len(words)):
                for order in range(3):
                    self.counts[order][tuple(words[at - order : at])][words[at]] += 1

    def write(self, rng: random.Random) -> tuple[str, float]:
        """(a text, its mean probability of a word)."""
        words, total = [END, END], 0.0
        while len(words) < 40:
            known = self.counts[2][tuple(words[-2:])] if rng.random() < 0.8 else self.counts[1][tuple(words[-1:])]
            known = known or self.counts[0][()]
            word = rng.choices(list(known), list(known.values()))[0]
            total += known[word] / known.total()
            words.append(word)
            if word == END:
                break
        return " ".join(words[2:]).strip(), total / (len(words) - 2)

    def pseudo_labels(self, rng: random.Random, count: int) -> list[str]:
        """The surer half of what it writes, as pseudo-labelling keeps it."""
        written = sorted((self.write(rng) for _ in range(2 * count)), key=lambda pair: -pair[1])
        return [text for text, _ in written[:count] if text]


def feed(lines, *, capped: bool, rounds: int = 5, count: int = 200):
    """Outcomes of the watch after each round: on its own last output alone, or on real data with a capped share."""
    rng, real = random.Random(0), lines[:600]
    model, first, outcomes, pool = Trigrams(real), None, [], []
    for _ in range(rounds):
        written = model.pseudo_labels(rng, count)
        first = first or written
        outcomes.append(watch_collapse(written, {"first round": first, "true": lines[600:1200]}))
        if capped:
            pool += written
            limit = max_pseudo_targets(sum(len(line.split()) for line in real), 0.2)
            chosen = rng.sample(pool, len(pool))
            while sum(len(line.split()) for line in chosen) > limit:
                chosen.pop()
            model = Trigrams(real + chosen)
        else:
            model = Trigrams(written)
    return outcomes


def test_a_line_that_feeds_on_itself_is_stopped_and_a_capped_one_is_not(lines):
    """Five rounds on its own last output, the cap lifted: the watch fires. Data that accumulate: it does not."""
    alone = feed(lines, capped=False)
    assert alone[0].outcome == "ok", "the first round is not its own fault"
    assert alone[-1].stops and any("of the first round" in one for one in alone[-1].breaches), alone[-1].breaches
    assert any("of the true" in one for one in alone[-1].breaches)
    capped = feed(lines, capped=True)
    assert [one.outcome for one in capped] == ["ok"] * 5, [one.breaches for one in capped]
    assert feed(lines, capped=False, rounds=1)[0] == alone[0], "the watch is deterministic"


@pytest.mark.acceptance
def test_a_real_model_that_feeds_on_itself_is_stopped(lines, tmp_path):
    """A tiny transformer, trained from scratch in each round on the surer half of its own last output; and on real
    lines with a capped share of it."""
    short = [line for line in lines if len(line) <= 48][:400]
    tokenizer = train_tokenizer(short, 400)

    def trained(texts, name):
        documents = [Document(f"{n}", (Text(f"{text}\n"),)) for n, text in enumerate(texts)]
        return train_tiny(tmp_path / name, documents, tokenizer, num_steps=150, batch_size=24)

    def written(model, seed):
        answers = ModelAnswers(model, tmp_path, temperature=0.8, batch_size=64)
        leads = [line[:2] for line in short[:240]]
        said = [lead + text for lead, text in zip(leads, answers.write(leads, max_tokens=24, seed=seed), strict=True)]
        prompts = [answers.encode((Text(lead, loss_mask=False),)) for lead in leads]
        sure = answers.confidence(prompts, [f"{text[2:]}\n" for text in said])
        return [said[n] for n in sorted(range(len(said)), key=lambda n: -sure[n])[:120]]

    model = trained(short, "start")
    first = written(model, 0)
    alone, texts = [], first
    for number in range(1, 5):
        texts = written(trained(texts, f"alone-{number}"), number)
        alone.append(watch_collapse(texts, {"first round": first}))
    assert alone[-1].stops, alone[-1].compared
    capped, texts = [], first
    for number in range(1, 3):
        texts = written(trained([*short, *texts[: len(short) // 5]], f"capped-{number}"), number)
        capped.append(watch_collapse(texts, {"first round": first}))
    # whether so small a model loses a quarter of its words below the cap too hangs on the bits of its weights
    distinct = [each.compared["first round"]["round_cut"].distinct[0] for each in (capped[-1], alone[-1])]
    assert distinct[0] > distinct[1], [one.breaches for one in capped]
