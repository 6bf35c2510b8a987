"""The cases of one part, encoded for one model's tokenizer and encoder; kept under (suite, part, tokenizer, encoder).

What a model cannot take is named with the reason: media that its encoder refuses, or more tokens than the suite allows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brine.common.content_store import ContentStore, store_key
from brine.common.files import digest
from brine.data.config import EncodeConfig
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.formats.source import DocumentSource
from brine.data.tokenizer import Tokenizer
from brine.evals.suites.case import SuiteCase
from brine.evals.suites.suite import Suite

STAGE = "suite_cases"
REVISION = 1
"""Raised where the same cases are encoded otherwise."""
NO_CASE = "no case of this part can be encoded"


@dataclass(frozen=True)
class EncodedCases:
    """corpus: an EncodedCorpus whose ids are those of cases, or None without any; cases: by id, those in the corpus;
    number: id -> index in the corpus; refused: id -> reason, of cases that this model cannot take."""

    corpus: EncodedCorpus | None
    cases: Mapping[str, SuiteCase]
    number: Mapping[str, int]
    refused: Mapping[str, str]

    def numbers(self, cases: Sequence[SuiteCase]) -> np.ndarray:
        """(n,) int64: indices in the corpus."""
        return np.array([self.number[case.id] for case in cases], np.int64)


@contextmanager
def open_encoded_cases(
    suite: Suite, part: str, *, tokenizer: Tokenizer, config: EncodeConfig, store: ContentStore, workers: int
) -> Iterator[EncodedCases]:
    """The encoded cases of a part, encoded now or before. Raises ValueError, naming the file, for damaged media."""
    cases = {case.id: case for case in suite.cases_in(part)}
    key = store_key(
        {"suite": suite.digest, "part": part, "encode": config.digest()},
        {"tokenizer": digest(tokenizer.to_str())}, revision=REVISION,
    )  # fmt: skip

    def build(folder: Path) -> dict:
        suite.check_media(cases.values())
        source = DocumentSource(
            suite.folder, "manifest", suite.folder.resolve(),
            lambda include_decode, skipped: (case.document() for case in cases.values()),
            digest=lambda media: suite.digest, count=lambda: len(cases),
        )  # fmt: skip
        try:
            build_corpus(
                source, folder / "store", tokenizer=tokenizer, config=config, num_workers=workers, progress=True
            )
        except ValueError as error:
            if "can be used" not in str(error):
                raise
            # the reasons are in quarantine.jsonl, which is kept
            return {"refused": NO_CASE}
        return {}

    if not cases:
        yield EncodedCases(None, {}, {}, {})
        return
    folder = store.get_or_build(STAGE, key, build)
    if (refused := store.result(folder).get("refused")) is not None:
        yield EncodedCases(None, {}, {}, dict.fromkeys(cases, refused))
        return
    with closing(EncodedCorpus.open(folder / "store")) as corpus:
        reasons = {str(line["id"]): str(line["reason"]) for line in corpus.quarantine()}
        longest, number = suite.settings["max_case_tokens"], {}
        for index, (name, tokens) in enumerate(zip(corpus.ids, corpus.num_tokens.tolist(), strict=True)):
            if tokens > longest:
                reasons[name] = f"{tokens:,} tokens, over the suite's {longest:,}"
            else:
                number[name] = index
        yield EncodedCases(corpus, {name: cases[name] for name in number}, number, reasons)
