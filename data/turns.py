"""Who speaks in a corpus: the roles of the conversations among its documents, from a few documents of each kind."""

from __future__ import annotations

import numpy as np

from data.store import EncodedCorpus

PER_KIND = 50


def roles_in(corpus: EncodedCorpus, documents: np.ndarray, *, per_kind: int = PER_KIND) -> list[str]:
    """Roles of parts, sorted; none where these documents are no conversations.

    documents: (n,) numbers. Of each kind at most `per_kind` are read, evenly spread, so that this takes no time.
    """
    found: set[str] = set()
    kinds = np.asarray(corpus.kind)[documents]
    for kind in np.unique(kinds):
        some = documents[kinds == kind]
        chosen = some[np.unique(np.linspace(0, len(some) - 1, min(per_kind, len(some))).astype(int))]
        found |= {part.role for number in chosen for part in corpus.document(int(number)).parts if part.role}
    return sorted(found)
