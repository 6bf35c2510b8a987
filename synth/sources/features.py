"""What can be said aloud about a source file, which files are near-duplicates, and the split of all of them.

Python is parsed with `ast`; other languages, and Python that does not parse, are read by regular expressions, which is
rougher but never fails. Vendored copies and forks of a module must not put held-out text into train, so whole clusters
of similar files are assigned to a split: by a MinHash over 5-token shingles (Broder 1997), whose fraction of equal
entries estimates the Jaccard similarity with a standard error of about 0.06. Lines that unlike files share are another
matter: see code_regions.py. A file costs about 5 ms.
"""

import ast
import hashlib
import keyword
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from brine.data.document import SPLITS
from brine.data.files.source_files import SourceFile, parse_python
from brine.data.filters.near import cluster_signatures

NUM_PERMUTATIONS = 64
SHINGLE_TOKENS = 5
PRIME = 2**32 - 5
"""Of the hash family h -> (a h + b) mod PRIME, which stands for random permutations of the shingles."""
BANDS = (32, 2)
"""Bands of a MinHash and entries in each: a pair of similarity 0.5 is overlooked once in ten thousand."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`")
_BLOCK_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_LINE_COMMENT = re.compile(r"(?://|#(?!include|define|if|else|endif|undef|pragma))[^\n]*")
_CALLABLE = re.compile(
    r"\b([A-Za-z_]\w*)\s*\(([^()]{0,160})\)\s*"
    # what may follow: an arrow and a type, a type, Go's several results
    r"(?:->[^{;\n]{1,40}|[A-Za-z_*\[\]. ]{0,30}|\([^()\n]{0,60}\))?\s*[{:]"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,.'()\-_/:;]*[.!?]")

OTHER_KEYWORDS = frozenset(
    """abstract alignas as auto bool boolean break byte case catch chan char class const constexpr continue crate
    debugger default defer define delete do double dyn elif else elsif end endif enum exit export extends extern
    false final finally float fn for foreach friend func function go goto if ifdef ifndef impl implements import in
    include inline instanceof int interface is let long loop match mod module move mut namespace native new nil not
    null of operator or override package private protected pub public raise ref register require rescue return self
    short signed sizeof static struct super switch template then this throw throws trait true try type typedef typeof
    undefined union unless unsafe unsigned use using val var virtual void volatile wchar when where while with yield
    """.split()  # noqa: SIM905 (a list of strings is five times as long)
)
KEYWORDS = frozenset(keyword.kwlist) | OTHER_KEYWORDS


@dataclass(frozen=True)
class SourceFeatures:
    """What one file gives. `names` counts identifiers; `signatures` and `sentences` are in reading order."""

    names: dict[str, int]
    signatures: tuple[str, ...]
    sentences: tuple[str, ...]
    minhash: tuple[int, ...]
    content_hash: str


def extract_features(text: str, language: str) -> SourceFeatures:
    """Names, signatures, sentences and fingerprint of a file's text. Raises nothing for odd text."""
    names, signatures, prose = _python(text) if language == "python" else _other(text, language)
    tokens = _TOKEN.findall(text)
    return SourceFeatures(
        names=dict(sorted(names.items())),
        signatures=tuple(dict.fromkeys(signatures)),
        sentences=tuple(dict.fromkeys(sentence for block in prose for sentence in _sentences(block))),
        minhash=_minhash(tokens),
        content_hash=hashlib.sha256("\x1f".join(tokens).encode()).hexdigest(),
    )


def name_parts(name: str) -> list[str]:
    """The parts of an identifier, split at _ and at camelCase, lower case: "HTTPServer_v2" -> http server v 2."""
    return [part.lower() for part in _PART.findall(name)]


def identifiers_in(line: str) -> list[str]:
    """The identifiers of one line of code in order, each once, keywords and one-letter names left out."""
    line = _LINE_COMMENT.sub(" ", _STRING.sub(" ", line))
    return list(dict.fromkeys(word for word in _WORD.findall(line) if len(word) > 1 and word not in KEYWORDS))


def _python(text: str) -> tuple[Counter[str], list[str], list[str]]:
    if (tree := parse_python(text)) is None:
        return _other(text, "python")
    # (line, column) restores reading order: ast.walk goes breadth first
    names, signatures, prose = Counter(), [], []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=str(name)) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                names[name] += 1
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names[name] += 1
            case ast.alias(name=name):
                names.update(name.split("."))
        where = (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            arguments = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            signatures.append((*where, _signature(node.name, arguments)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            prose.append((*where, ast.get_docstring(node) or ""))
    return names, [item[2] for item in sorted(signatures) if item[2]], [item[2] for item in sorted(prose) if item[2]]


def _other(text: str, language: str) -> tuple[Counter[str], list[str], list[str]]:
    if language in ("markdown", "rst", "text"):
        return Counter(), [], [text]
    comments = [re.sub(r"^[ \t]*[*!]+", "", block[2:-2], flags=re.M) for block in _BLOCK_COMMENT.findall(text)]
    code = _BLOCK_COMMENT.sub(" ", text)
    # neighbouring line comments are one paragraph
    for run in re.findall(r"(?:^[ \t]*(?://|#)[^\n]*\n)+", code, flags=re.M):
        comments.append(re.sub(r"^[ \t]*[/#!]+", "", run, flags=re.M))
    code = _LINE_COMMENT.sub(" ", _STRING.sub(" ", code))
    names = Counter(word for word in _WORD.findall(code) if word not in KEYWORDS)
    signatures = []
    for name, inside in _CALLABLE.findall(code):
        arguments = [(_WORD.findall(re.split("[:=]", item)[0]), ":" in item) for item in inside.split(",")]
        # "name: Type" and Go's "name Type" put the name first, C's family puts it last
        found = [words[0 if language == "go" or typed else -1] for words, typed in arguments if words]
        signatures.append(_signature(name, found) if name not in KEYWORDS else "")
    return names, list(filter(None, signatures)), comments


def _signature(name: str, arguments: list[str]) -> str:
    """ "name(first, second)", or "" when it has more than six arguments or nothing that can be said."""
    if name.startswith("__") or len(arguments) > 6 or not name_parts(name):
        return ""
    return f"{name.strip('_')}({', '.join(arguments)})"


def _sentences(block: str) -> list[str]:
    """Plain sentences of 20 to 110 characters in a block of prose; code, lists and examples drop out."""

    def plain(sentence: str) -> bool:
        if not 20 <= len(sentence) <= 110 or not _PLAIN_SENTENCE.fullmatch(sentence):
            return False
        return sum(char.isalpha() or char == " " for char in sentence) >= 0.9 * len(sentence)

    paragraphs = (text for text in re.split(r"\n\s*\n", block) if ">>>" not in text and "::" not in text)
    return [text for item in paragraphs for text in _SENTENCE_END.split(" ".join(item.split())) if plain(text)]


def _minhash(tokens: list[str]) -> tuple[int, ...]:
    """NUM_PERMUTATIONS minima over the file's shingles; empty for a file shorter than one shingle."""
    if len(tokens) < SHINGLE_TOKENS:
        return ()
    shingles = zip(*(tokens[start:] for start in range(SHINGLE_TOKENS)), strict=False)
    hashes = np.asarray(sorted({zlib.crc32("\x1f".join(shingle).encode()) for shingle in shingles}), np.uint64)
    draw = random.Random("minhash")
    # a < 2**31 and h < 2**32, so the product stays below 2**64
    pairs = [(draw.randrange(1, 2**31), draw.randrange(2**31)) for _ in range(NUM_PERMUTATIONS)]
    return tuple(int(((hashes * np.uint64(a) + np.uint64(b)) % np.uint64(PRIME)).min()) for a, b in pairs)


def cluster_near_duplicates(features: list[SourceFeatures], *, threshold: float) -> list[list[int]]:
    """Groups of indices, closed over pairs with equal tokens or Jaccard estimate >= threshold, by their first index."""
    signatures = [item.minhash for item in features]
    return cluster_signatures(signatures, [item.content_hash for item in features], threshold=threshold, bands=BANDS)


def split_clusters(
    clusters: list[list[int]], *, files: list[SourceFile], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """split -> indices of its files, ascending. A held-out split takes clusters, in an order shuffled by the seed, up
    to its fraction of the bytes. Of three clusters or more each split with a fraction above 0 gets one, the smallest
    if no other fits; of fewer train goes first."""
    sizes = [sum(files[index].num_bytes for index in group) for group in clusters]
    free = list(range(len(clusters)))
    random.Random(f"split/{seed}").shuffle(free)
    taken: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        target, held = fraction * sum(sizes), 0
        for item in free:
            # at most a tenth over the target: one large file must not make the whole split
            if held < target and held + sizes[item] <= 1.1 * target:
                taken[split].append(item)
                held += sizes[item]
        if fraction > 0 and not taken[split] and len(free) >= 2:
            taken[split] = [min(free, key=lambda item: (sizes[item], item))]
        chosen = set(taken[split])
        free = [item for item in free if item not in chosen]
    taken["train"] = free
    return {split: sorted(index for item in taken[split] for index in clusters[item]) for split in SPLITS}
