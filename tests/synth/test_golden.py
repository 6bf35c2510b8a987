"""A small corpus of all kinds stays as it was, to the byte: its documents, and the digests of its media's specs."""

import hashlib
import json
import random

from brine.data.files.source_files import read_source
from brine.synth import SynthConfig, SynthCounts
from brine.synth.plan import plan_corpus
from brine.synth.sources.code_metrics import measure_code
from brine.synth.sources.features import cluster_near_duplicates, extract_features, split_clusters

DIGEST = "c5f1b7ff5eb77bdb2950505570fc52a8489dda248a31c1e60053599370fa4cb9"
EACH, FEW = (12, 12, 12, 12), (3, 3, 3, 3)


def counts(each) -> SynthCounts:
    kinds = [name for name in SynthCounts.__dataclass_fields__ if name not in ("text", "package")]
    return SynthCounts(text=each[0], package=2, **dict.fromkeys(kinds, each))


def write_source(folder) -> None:
    """Files that look like code, the same for every version of Python."""
    draw = random.Random("golden")
    words = [
        "alpha",
        "beam",
        "cargo",
        "delta",
        "ember",
        "field",
        "grain",
        "hollow",
        "index",
        "joint",
        "kernel",
        "ledger",
    ]
    words += ["margin", "number", "orbit", "packet", "query", "record", "signal", "token", "update", "vector", "window"]

    def name(count: int) -> str:
        return "_".join(draw.sample(words, count))

    for package in ("first", "second", "third"):
        (folder / package).mkdir(parents=True)
        for _ in range(9):
            lines = [
                f'"""The module for every {draw.choice(words)} and each {draw.choice(words)} of the package."""',
                "",
            ]
            lines += [f"{name(2).upper()} = {draw.randrange(10, 9000)}" for _ in range(4)]
            for _ in range(3):
                lines += ["", "", f"class {name(2).title().replace('_', '')}:"]
                for _ in range(3):
                    arguments = ", ".join(draw.sample(words, draw.randint(1, 3)))
                    lines += [f"    def {name(draw.randint(1, 3))}(self, {arguments}):"]
                    lines += [f'        """Return the {draw.choice(words)} that a {draw.choice(words)} holds today."""']
                    lines += [
                        f"        {name(1)} = {name(2)}({draw.choice(words)}, {draw.randrange(99)})"
                    ] * draw.randint(1, 2)
                    lines += [
                        f"        if {draw.choice(words)} > {draw.randrange(50)}:",
                        f"            return {name(2)}",
                    ]
                    lines += [f"        return {name(1)}.{name(1)}[{draw.randrange(9)}]", ""]
            (folder / package / f"{name(2)}.py").write_text("\n".join(lines) + "\n")
    (folder / "first" / "notes.md").write_text("# Notes\n\nA plain sentence about the code that stands here.\n" * 3)
    (folder / "second" / "part.c").write_text(
        "/* The sum of two numbers is returned here. */\nint sum(int one, int two) {\n}\n" * 4
    )


def plan(folder, config: SynthConfig):
    files, _ = read_source(folder)
    features = [extract_features(item.text, language=item.language) for item in files]
    metrics = [measure_code(item.text, language=item.language) for item in files]
    clusters = cluster_near_duplicates(features, threshold=0.5)
    splits = split_clusters(clusters, files=files, validation_fraction=0.2, test_fraction=0.2, seed=config.seed)
    return plan_corpus(config, files=files, features=features, splits=splits, code_metrics=metrics)


def test_a_corpus_of_all_kinds_is_what_it_was(tmp_path, monkeypatch):
    # names of media files are digests of their specs and of the versions of libraries
    monkeypatch.setattr("brine.synth.plan.installed_version", lambda name: name)
    write_source(tmp_path)
    made = plan(tmp_path, SynthConfig(train=counts(EACH), validation=counts(FEW), test=counts(FEW)))
    planned = {(item["kind"], item["level"]) for item in made.documents}
    assert len(planned) == 1 + 4 * 12, "a kind or a level is missing"
    assert hashlib.sha256(json.dumps(made.documents).encode()).hexdigest() == DIGEST
