"""Which source each document of a corpus is from, and what its users agreed to.

A corpus of several sources keeps name and class of consent of each in `meta.json` (`corpus_sources`); its column
`source` begins with the name. Corpora of one source have neither, and count as "unknown".
"""

import numpy as np

from brine.data.document import SPLITS

UNKNOWN = "unknown"


def corpus_source_names(corpus) -> list[str]:
    """Name of the joined source that each of `corpus.sources` belongs to; "" in a corpus of one source."""
    known = getattr(corpus, "consent_classes", {})
    names = (source.partition(":")[0] for source in corpus.sources)
    return [name if name in known else "" for name in names]


def count_sources(corpus) -> dict[str, dict]:
    """{source: {"consent", "documents", "train_documents", "tokens", "train_tokens"}}; one source "" where the corpus
    joins none. A source all of whose documents are quarantined counts 0."""
    classes = corpus.consent_classes or {"": UNKNOWN}
    order = {name: number for number, name in enumerate(classes)}
    number = np.array([order[name] for name in corpus_source_names(corpus)], np.int64)[corpus.source]
    trained = corpus.split == SPLITS.index("train")
    found = {}
    for name, consent in classes.items():
        mine = number == order[name]
        found[name] = {"consent": consent, "documents": int(mine.sum()), "train_documents": int((mine & trained).sum())}
        found[name] |= {
            "tokens": int(corpus.num_tokens[mine].sum()),
            "train_tokens": int(corpus.num_tokens[mine & trained].sum()),
        }
    return found


def consent_of(corpus, number: int) -> str:
    """Class of consent of one document."""
    name = corpus_source_names(corpus)[int(corpus.source[number])]
    return corpus.consent_classes.get(name, UNKNOWN)
