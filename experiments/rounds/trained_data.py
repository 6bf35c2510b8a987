"""What a training of a round was really made from: documents of each source, what filters dropped, the pseudo share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from brine.data.corpus.consent import corpus_source_names
from brine.data.corpus.store import EncodedCorpus
from brine.data.corpus.swap import FILTER_LOG
from brine.data.document import SPLITS
from brine.data.filters.filter_log import FilterLog
from brine.data.packing.mixture import mean_weight
from brine.pipeline.inputs.sources import mixture_of
from brine.pipeline.model_stages import STORE
from brine.pipeline.recipe import Recipe
from brine.salt.pseudo_pool import PSEUDO_CONSENT


def trained_data(run: Path, recipe: Recipe) -> dict[str, Any]:
    """{"documents", "targets", "filtered", "pseudo_share"} of a run that has encoded its corpus.

    documents: training documents that are left, by source. targets: their target tokens times how often the mixture
    samples them in the mean over the training. filtered: for each filter, training documents that it dropped, by
    source. pseudo_share: words of models among the targets.
    """
    corpus = EncodedCorpus.open(run / "encoded" / STORE)
    folder = run / "filtered" / FILTER_LOG
    log = FilterLog.open(corpus, folder if folder.is_dir() else None)
    names, train = np.array(corpus_source_names(corpus)), corpus.split == SPLITS.index("train")
    kept = np.flatnonzero(train & log.kept_mask())
    documents, targets = Counter(names[corpus.source[kept]].tolist()), Counter[str]()
    for group, factors in mixture_of(recipe.corpus, recipe.packing.mixture, corpus).groups(corpus, kept):
        weight = mean_weight(factors, 0.0, 1.0)
        for number in group.tolist():
            targets[str(names[corpus.source[number]])] += weight * int(corpus.tokens(number).loss_mask.sum())
    filtered = []
    for record in log.records:
        dropped = [line["document"] for line in log.dropped(record["number"])]
        found = Counter(str(names[corpus.source[number]]) for number in dropped if train[number])
        filtered.append({"filter": record["name"], "dropped": dict(sorted(found.items()))})
    consent = {source.name: source.consent for source in recipe.corpus.sources}
    pseudo = sum(count for name, count in targets.items() if consent.get(name) == PSEUDO_CONSENT)
    return {
        "documents": dict(sorted(documents.items())), "targets": {n: round(targets[n], 3) for n in sorted(targets)},
        "filtered": filtered, "pseudo_share": round(pseudo / max(1e-9, sum(targets.values())), 6),
    }  # fmt: skip
