"""What of a corpus fits no row, and whether anything is left to train on: told before training, not after it.

A document longer than a row is spread over several, cut outside media (`data.segments`), and its pieces do not see each
other: the words of a long picture, or the answer to a long question, are then learned apart from it. It is left out
where what lies between two cuts, usually one medium, has more tokens than a row or more patches than its budget.
`LeftOut` counts both by kind and says which number is in the way and how large it would have to be. `find_left_out`
does so for the documents that a training run chooses, `LeftOut.count` for documents one by one, as `data check` meets
them.

`require_targets` refuses what cannot be trained on: no document in the train split, none that filters left, none that
fits, none with a token to predict, or more left out than the caller allows.

Cost: one comparison a document; only those that exceed a row are read, 50 us each.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data.document import MODALITIES, SPLITS
from data.tokenizer import CLOSE_ID, SLOT_ID

NAMED = 5
"""Ids that are told."""
_FEWER = {"image": "max_image_tokens", "audio": "max_audio_s", "video": "max_video_tokens"}
"""Fields of EncodeConfig that make media smaller."""


def rows_option(name: str) -> str:
    """How training spells a field: of its rows, or of the encoding."""
    return f"rows.{name}" if name.endswith(("row_tokens", "_budget")) else f"corpus.encode.{name}"


def command_option(name: str) -> str:
    """How `python -m data` spells the same."""
    return "--" + name.replace("_", "-")


@dataclass
class LeftOut:
    """Documents that fit no row, counted."""

    row_tokens: int
    """Tokens of a row."""
    media_budget: dict[str, int]
    """Most patches of each modality in a row."""
    documents: int = 0
    """Documents that fit no row."""
    of_documents: int = 0
    """Documents that were asked for."""
    tokens: int = 0
    of_tokens: int = 0
    kinds: Counter = field(default_factory=Counter)
    """Documents left out, by kind."""
    first: list[str] = field(default_factory=list)
    """Ids of the first few."""
    needs: dict[str, int] = field(default_factory=dict)
    """Modality, or "tokens" for all together -> the most that lies between two cuts, where a row has no room for it."""
    teaching: int = 0
    """Of those that `count` met and that fit, the ones with a token to predict."""
    cut: Counter = field(default_factory=Counter)
    """Documents that are cut into pieces, by kind."""
    apart: int = 0
    """How many of those hold media or a question, which their later pieces do not see."""
    wholes: dict[str, int] = field(default_factory=dict)
    """As `needs`, of whole documents that are cut."""

    def __post_init__(self):
        self.media_budget = {name: self.media_budget.get(name, self.row_tokens) for name in MODALITIES}
        # what has no more tokens than this is over no limit
        self._least = min(self.row_tokens, *self.media_budget.values())

    @property
    def share(self) -> float:
        """Share of the documents that is left out."""
        return self.documents / max(1, self.of_documents)

    def count(self, name: str, kind: str, sequence) -> bool:
        """Take one document, by id, kind and sequence -> whether it fits."""
        self.of_documents += 1
        self.of_tokens += len(sequence)
        over = self.lacking(sequence)
        if over:
            self.documents += 1
            self.tokens += len(sequence)
            self.kinds[kind] += 1
            if len(self.first) < NAMED:
                self.first.append(name)
            _widen(self.needs, over)
        elif len(sequence) > self._least and (whole := self._over(_amounts(sequence))):
            self.cut[kind] += 1
            self.apart += not sequence.learn[1:].all()
            _widen(self.wholes, whole)
        self.teaching += not over and bool(sequence.learn[1:].any())
        return not over

    def refused(self, *, most: float = 1.0) -> str:
        """Why training would refuse the documents that `count` met; "" where it would not. most: see
        `require_targets`."""
        if not self.of_documents:
            return (
                'no document of the train split: give documents "split": "train", or their files a place below train/'
            )
        if self.documents == self.of_documents:
            return "no document of the train split fits a row"
        if self.share > most:
            return f"more of the train split is left out than rows.max_left_out {most:g} allows"
        return "" if self.teaching else "no document of the train split has a target"

    def lacking(self, sequence) -> dict[str, int]:
        """What a row has no room for in a document, as in `needs`; empty where the document fits."""
        if len(sequence) <= self._least:
            return {}
        return self._over(largest_pieces(sequence))

    def _over(self, amounts: dict[str, int]) -> dict[str, int]:
        limits = {"tokens": self.row_tokens, **self.media_budget}
        return {what: need for what, need in amounts.items() if need > limits[what]}

    def remedies(self, option=rows_option, *, needs: dict[str, int] | None = None) -> str:
        """The options that help, as they are and as they would have to be."""
        needs, found = self.needs if needs is None else needs, []
        if "tokens" in needs:
            found.append(f"{option('row_tokens')} {self.row_tokens} -> {needs['tokens']}")
        for name in MODALITIES:
            if name in needs:
                found.append(f"{option(f'{name}_budget')} {self.media_budget[name]} -> {needs[name]}")
        fewer = [option(_FEWER[name]) for name in MODALITIES if name in needs]
        return ", ".join(found) + (f"; or smaller media by a lower {', '.join(fewer)}" if fewer else "")

    def text(self, option=rows_option) -> str:
        """A few sentences: how many are left out or cut, which, and what helps."""
        text = self._left_out_text(option)
        if not self.cut:
            return text
        count, kinds = self.cut.total(), ", ".join(f"{count:,} {kind[:60]}" for kind, count in self.cut.most_common(8))
        apart = (
            f"; {self.apart:,} of these hold media or a question, and words behind a cut are learned without them"
            if self.apart
            else ""
        )
        text += f". {count:,} of the others fit" if self.documents else f", {count:,}"
        return (
            f"{text} only in pieces that do not see each other: {kinds}{apart}. What keeps them whole: "
            f"{self.remedies(option, needs=self.wholes)}"
        )

    def _left_out_text(self, option) -> str:
        if not self.documents:
            return f"all {self.of_documents:,} train documents fit rows of {self.row_tokens:,} tokens"
        kinds = ", ".join(f"{count:,} {kind[:60]}" for kind, count in self.kinds.most_common(8))
        tokens = 100 * self.tokens / max(1, self.of_tokens)
        names = ", ".join(ascii(name[:60]) for name in self.first)
        more = ", ..." if self.documents > len(self.first) else ""
        return (
            f"{self.documents:,} of {self.of_documents:,} train documents are left out, since they fit no row: "
            f"{kinds}; {100 * self.share:.1f} % of the documents, {tokens:.1f} % of the tokens; {names}{more}. "
            f"What helps: {self.remedies(option)}"
        )

    def to_json(self) -> dict:
        """The same as an object."""
        return {
            "documents": self.documents,
            "of_documents": self.of_documents,
            "tokens": self.tokens,
            "of_tokens": self.of_tokens,
            "kinds": dict(self.kinds.most_common()),
            "first": self.first,
            "needs": self.needs,
            "cut": {"kinds": dict(self.cut.most_common()), "apart": self.apart, "needs": self.wholes},
            "row_tokens": self.row_tokens,
            "media_budget": self.media_budget,
        }


def _widen(needs: dict[str, int], more: dict[str, int]) -> None:
    for what, need in more.items():
        needs[what] = max(need, needs.get(what, 0))


def _amounts(sequence) -> dict[str, int]:
    """The tokens of a document, and the patches of each modality."""
    found = {name: int((sequence.token_ids == SLOT_ID[name]).sum()) for name in MODALITIES}
    return {"tokens": len(sequence), **found}


def largest_pieces(sequence) -> dict[str, int]:
    """The most tokens ("tokens"), and patches of each modality, that a document has between two places to cut it."""
    edges = np.unique(np.concatenate([[0], sequence.cuts(), [len(sequence)]]))
    starts = edges[:-1]
    # a target takes the token before it along, unless that closes a medium
    closes = np.isin(sequence.token_ids, list(CLOSE_ID.values()))
    again = (starts > 0) & sequence.learn[starts] & ~closes[starts - 1]
    found = {"tokens": int((np.diff(edges) + again).max(initial=0))}
    for name in MODALITIES:
        total = np.concatenate([[0], np.cumsum(sequence.token_ids == SLOT_ID[name])])
        found[name] = int(np.diff(total[edges]).max(initial=0))
    return found


def find_left_out(
    corpus, *, row_tokens: int, media_budget: dict[str, int], documents: np.ndarray | None = None
) -> LeftOut:
    """What of the train split, and of the mask `documents` (n,) where given, fits no row."""
    found = LeftOut(row_tokens, media_budget)
    chosen = _train(corpus, documents)
    over = chosen & (corpus.num_tokens > row_tokens)
    for name in MODALITIES:
        over |= chosen & (corpus.num_media[name] > found.media_budget[name])
    for number in np.flatnonzero(over).tolist():
        # reading a line for each would cost more than the counting
        name = corpus.document(number).id if len(found.first) < NAMED else ""
        found.count(name, corpus.kinds[corpus.kind[number]], corpus.tokens(number))
    fitting = chosen & ~over
    found.of_documents += int(fitting.sum())
    found.of_tokens += int(corpus.num_tokens[fitting].sum())
    return found


def require_targets(corpus, left_out: LeftOut, *, documents: np.ndarray | None = None, most: float = 1.0) -> None:
    """Raise ValueError, with the remedy, unless the train split holds something to learn that fits rows.

    documents: mask (n,) of what filters left. most: largest share of documents that may be left out.
    """
    every, chosen = _train(corpus, None), _train(corpus, documents)
    if not every.any():
        counts = ((split, int((corpus.split == place).sum())) for place, split in enumerate(SPLITS))
        others = ", ".join(f"{count:,} {split}" for split, count in counts if count)
        raise ValueError(
            f"no document of the train split (0 of {len(corpus):,} documents: {others}): there is nothing to train on. "
            'Give documents "split": "train", or their files a place below train/'
        )
    if not chosen.any():
        raise ValueError(
            f"no document of the train split is left by the filters (0 of {int(every.sum()):,}): use fewer "
            "corpus.filters; of a built corpus, take rounds back by `python -m data filter FOLDER --undo 1` to train"
        )
    if left_out.documents == left_out.of_documents:
        raise ValueError(f"no document of the train split fits a row: {left_out.text()}")
    if left_out.share > most:
        raise ValueError(
            f"too little of the train split fits rows (rows.max_left_out {most:g}): {left_out.text()}; "
            "or allow it by a higher rows.max_left_out"
        )
    if not any(_teaches(corpus.tokens(number), left_out) for number in map(int, np.flatnonzero(chosen))):
        fitting = left_out.of_documents - left_out.documents
        raise ValueError(
            f"no document of the train split has a target (0 of {fitting:,} documents that fit rows): "
            'their text is empty, marked "learn": false, or said by others than the assistant. Mark what '
            "the model is to say to train it"
        )


def _train(corpus, documents: np.ndarray | None) -> np.ndarray:
    chosen = corpus.split == SPLITS.index("train")
    return chosen if documents is None else chosen & documents


def _teaches(sequence, left_out: LeftOut) -> bool:
    """Whether a document has a token to predict, the first having none before it, and fits rows."""
    return bool(sequence.learn[1:].any()) and not left_out.lacking(sequence)
