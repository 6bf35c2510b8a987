"""One of several sources of a corpus: where its documents are, how often they are sampled, and who agreed to what.

The short form of the command line is `NAME=PATH`, then any of `,weight=W`, `,consent=CLASS`, `,format=FORMAT`; `synth`
alone is the synthetic corpus. What a class of consent allows is told in `CONSENT_CLASSES`; a corpus records it with
each source, and so with each document.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from brine.data.packing.mixture import MAX_WEIGHT

CONSENT_CLASSES = {
    "unknown": "nothing was said; what `corpus.manifest` has",
    "public": "published for anybody to use: public domain, or an open licence that allows training",
    "licensed": "obtained under a licence or a contract that allows training, and perhaps not passing on",
    "own": "made by whoever trains, or by a rule: own writing, synthetic documents",
    "user-train": "from users who agreed to training on it",
    "user-evaluate": "from users who agreed to evaluation alone: never trained on, all of it is held out",
    "pseudo": "words made by a model: pseudo-labels, self-play; their share can be capped",
}
"""What each class of consent means."""
NEVER_TRAINED = ("user-evaluate",)
"""Classes whose documents are held out."""
SYNTH = "synth"
"""Short form of the synthetic corpus, and its name unless another is given."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OPTIONS = ("weight", "consent", "format")


@dataclass(frozen=True)
class CorpusSource:
    """A source of documents, of any format that `brine.data.formats.open` reads. Raises ValueError for a field that
    cannot be used."""

    name: str
    """Name of the source: first folder of its media paths, and start of its documents' field `source`."""
    path: Path | None = None
    """A folder, manifest, tar or Parquet file; None: the synthetic corpus, made from `corpus.source`."""
    weight: float = 1.0
    """How often its documents are sampled, as in `packing.mixture`, whose weights it multiplies."""
    consent: str = "unknown"
    """Class of consent (`CONSENT_CLASSES`); for the synthetic corpus "own", unless another is given."""
    format: str | None = None
    """Format of the documents; None: detected."""

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"corpus.sources: the name {self.name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', and "
                "begin with a letter or digit"
            )
        object.__setattr__(self, "path", None if self.path is None else Path(self.path))
        if self.path is None and self.consent == "unknown":
            object.__setattr__(self, "consent", "own")
        if self.consent not in CONSENT_CLASSES:
            raise ValueError(
                f"corpus.sources: {self.name} has consent {self.consent!r}, which is none of "
                f"{', '.join(CONSENT_CLASSES)}"
            )
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise ValueError(f"corpus.sources: {self.name} has weight {self.weight}: give 0 to {MAX_WEIGHT}")
        if self.path is None and self.format is not None:
            raise ValueError(f"corpus.sources: {self.name} is the synthetic corpus, which has no format to give")

    @property
    def is_trained_on(self) -> bool:
        """Whether its class of consent allows training."""
        return self.consent not in NEVER_TRAINED

    @classmethod
    def parse(cls, text: str) -> "CorpusSource":
        """From its short form; a path may hold commas. Raises ValueError in one sentence."""
        rest, options = text, {}
        while match := re.search(rf",({'|'.join(_OPTIONS)})=([^,]*)$", rest):
            rest, (key, value) = rest[: match.start()], match.groups()
            if key in options:
                raise ValueError(f"corpus.sources: {text!r} gives {key} twice")
            options[key] = value
        name, equals, path = rest.partition("=")
        if rest == SYNTH:
            name, path = SYNTH, None
        elif not equals or not path or not name:
            raise ValueError(
                f"corpus.sources: {text!r} must read NAME=PATH, with ,weight=W ,consent=CLASS or ,format=FORMAT after "
                f"it where needed, or {SYNTH} for the synthetic corpus"
            )
        elif unknown := re.search(r",([a-z_]+)=[^,/]*$", path):
            raise ValueError(f"corpus.sources: {text!r} gives {unknown[1]}, which is none of {', '.join(_OPTIONS)}")
        try:
            weight = float(options.pop("weight", 1.0))
        except ValueError:
            raise ValueError(f"corpus.sources: {text!r} has a weight that is no number") from None
        return cls(name, None if path is None else Path(path), weight, **options)

    def __str__(self) -> str:
        """The short form."""
        text = self.name if self.path is None else f"{self.name}={self.path}"
        if self.weight != 1:
            text += f",weight={self.weight:g}"
        if self.consent != ("own" if self.path is None else "unknown"):
            text += f",consent={self.consent}"
        return text + (f",format={self.format}" if self.format else "")


def check_sources(sources: tuple[CorpusSource, ...]) -> None:
    """Raise ValueError for names that come twice, more than one synthetic corpus, or nothing to train on."""
    names = [source.name for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"corpus.sources: the name {twice!r} comes twice: give each source its own")
    if [source.path for source in sources].count(None) > 1:
        raise ValueError("corpus.sources: the synthetic corpus comes twice: give it once")
    if sources and not any(source.weight > 0 and source.is_trained_on for source in sources):
        raise ValueError(
            "corpus.sources: no source is left to train on, by their weights and classes of consent: give one that is"
        )
