"""Which of train, validation and test a word stands for: one table for fields, folders and files.

    split_of_name("val2017")           "validation", by the first word of a name; "" where it says nothing
    split_of_name("coco_val", last=True)   the same by the last word
    split_words("llava_test_v1")       [(("llava",), "test", ("v",))]: each such word, and the words around it
    split_of_word(" Dev_clean ")       "validation": the value of a field; ValueError for what no word is known of
    own_split(fields)                  the split that an object names itself, under any of the names below; "" for none

A word is a run of letters, in any case, so `test2017`, `Test images`, `testA`, `train-00000-of-00002`, `dev_clean` and
`test-other` have one at their start; `tests`, `latest`, `contest` and `testament` are other words. Two that stand side
by side may be one (`held_out`, `Test set`). A value of a field `split` may have its word anywhere (`coco_val2014`),
since the field says that there is one; whether a name with one in its middle declares it, its siblings say
(`data.formats.splits`).

An object names its split, itself or inside `meta` or `metadata`, by the first of these that has a value it knows:

    own      `split`, `Split`, `data_split`, `split_name` ...; a value that nobody knows sets the document aside
    like     any other name with the word in it (`source_split`, `_split`, `train_test_split`, `splits`)
    loose    `subset`, `partition`, `set`, `fold`, `phase`, `mode`, `data_type`, `usage`, which mean other things too:
             only if the value is no more than such a word, or one with the field's own name or a word that often goes
             with it around it (`fold_test`, `test-clean`, `PublicTest`); a single letter behind it is a part's
             (`testA`), one before it makes another word of it ("T-test", "A/B test"), if it has no number (`v2_test`)
    flag     `is_test`, `isTest`, `is_train` ..., true or false as `flag_value` reads them. "None", "N/A", -1 and such
             say nothing. Another value sets the document aside; a word or a fraction does so for `is_test`,
             `is_train`, `is_val` and `is_validation` alone, since the others mean more (`is_dev`: "senior")

Of several of one sort a held-out one wins. What of these was not read is noted (`data.formats.unread`).
"""

import functools
import re

SPLITS = ("train", "validation", "test")
FIELDS = ("split", "Split", "SPLIT", "data_split", "dataset_split", "split_name", "orig_split", "original_split")
"""Fields that name a split and nothing else."""
_LOOSE = {"partition", "subset", "set", "fold", "phase", "mode", "part", "portion", "usage", "datatype"}
_AROUND = {"data", "dataset", "sample", "original", "orig", "source", "name", "type", "kind"}
"""Words around one of these in the name of a field; with `type` or `kind` they are one themselves (`data_type`)."""
_BESIDE = {"set", "data", "split", "subset", "part", "public", "private", "clean", "other", "seen", "unseen"}
_BESIDE |= {"full", "small", "mini", "std", "hard", "easy"}
"""Words that may stand beside one for a split in the value of a loose field."""
FLAGS = {
    **dict.fromkeys(("is_train", "is_training", "in_train"), ("train", "test")),
    **dict.fromkeys(("is_val", "is_validation", "is_dev", "is_eval"), ("validation", "")),
    **dict.fromkeys(("is_test", "is_testing", "is_heldout", "is_held_out", "is_holdout"), ("test", "")),
}
"""Flag -> what it says when it is true and when it is false; two of them are told in the order given."""
_TRUTHS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "f", "n"), False),
}
_SURE_FLAGS = ("is_test", "is_train", "is_val", "is_validation")
"""Flags that are about a split whatever their value is."""
_ABSENT = {"", "none", "null", "nil", "nan", "<na>", "na", "n/a", "#n/a", "nat", "-", "--", "?", "unknown", "undefined"}
_ABSENT |= {"missing", "unspecified", "unset", "-1", "-1.0"}
"""How tables, and programs that write them, spell that a flag has no value."""
_OF_SPLIT = {
    "train": "train training trainset traindata trainsplit trainlist trn trainval trainvalid restval",
    "validation": "validation validate val valid dev devel development eval evaluation valset devset evalset valdata "
    "devdata evaldata validset validationset valsplit devsplit vallist minival",
    "test": "test testing testset testdata testsplit testlist tst testdev teststd heldout holdout",
}
WORDS = {word: split for split, words in _OF_SPLIT.items() for word in words.split()}
"""Word, in lower case -> split."""
_ALL = re.compile(r"[^\W\d_]+")
_NUMBERED = re.compile(r"(?<![^\W\d_])([^\W\d_])\d")
"""A letter with a number behind it, as versions have (v2)."""
_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[^A-Z]+")
"""A word of one that joins several by capitals (testImages)."""


def split_of_name(name: str, *, last: bool = False) -> str:
    """The split that the first (or last) word of a name stands for; "" when it is none of the table."""
    found = split_words(name)
    return next((split for before, split, after in found if not (after if last else before)), "")


def split_words(name: str) -> list[tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """(words before, split, words after) of each word, or two words, of a name that stands for a split."""
    words, found, place = words_of_name(name), [], 0
    while place < len(words):
        two = words[place : place + 2]
        # two that are one word together say more than the first alone; pieces of a word (t-est) are none
        count = 2 if len(two) == 2 and min(map(len, two)) > 2 and "".join(two) in WORDS else 1
        if split := WORDS.get("".join(two[:count])):
            found.append((words[:place], split, words[place + count :]))
        place += count
    return found


def words_of_name(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case: its runs of letters, taken apart where a capital begins one."""
    found: list[str] = []
    for run in _ALL.findall(name):
        found += [run] if run.casefold() in WORDS else _PIECE.findall(run)
    return tuple(word.casefold() for word in found)


def split_of_word(value) -> str:
    """The split that the value of a field stands for; "" for null and the empty text.

    Raises ValueError, with the words there are, for anything else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, str) and len(value) < 200:
        found = split_of_name(value) or split_of_name(value, last=True)
        found = found or next((split for _, split, _ in split_words(value)), "")
        if found:
            return found
    raise ValueError(f"must be one of {', '.join(SPLITS)} (or val, dev, eval ...), not {value!r}"[:200])


@functools.lru_cache(maxsize=8192)
def sort_of_field(name: str) -> str:
    """How a field may name a split: "own", "like", "loose" or "flag"; "" for a field that does not."""
    if name in FIELDS:
        return "own"
    words = words_of_name(name) if len(name) <= 60 else ()
    if _flag(words):
        return "flag"
    if {"split", "splits", "datasplit"}.intersection(words):
        return "like"
    left = [word for word in words if word not in _AROUND]
    is_loose = left[0] in _LOOSE if len(left) == 1 else not left and bool({"type", "kind"}.intersection(words[1:]))
    return "loose" if is_loose else ""


def split_in_field(name: str, value) -> str:
    """The split that a field which is "like" or "loose" names; "" for none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or len(value) > 60:
        return ""
    found, num_words = split_words(value), len(words_of_name(value))
    if len({split for _, split, _ in found}) != 1:
        return ""
    if sort_of_field(name) == "like":
        # more words are a sentence that was split
        return found[0][1] if num_words <= 3 else ""
    before, split, after = found[0]
    known = _BESIDE.union(words_of_name(name), map(str.casefold, _NUMBERED.findall(value)))
    around = before + (after[1:] if after and len(after[0]) == 1 else after)
    return split if len(found) == 1 and known.issuperset(around) else ""


def own_split(fields: dict) -> str:
    """The split that an object names itself; "" for none. Raises ValueError naming the field."""
    holders = [each for each in (fields, fields.get("meta"), fields.get("metadata")) if isinstance(each, dict)]
    sorts = [(holder, key, sort) for holder in holders for key in holder if (sort := sort_of_field(str(key)))]
    if not sorts:
        return ""
    for holder in holders:
        for key in FIELDS:
            try:
                if found := split_of_word(holder.get(key)):
                    return found
            except ValueError as error:
                # what stands deeper may be of another kind
                if holder is fields:
                    raise ValueError(f"field {key!r} {error}") from None
    for sort in ("like", "loose"):
        said = [split_in_field(key, holder[key]) for holder, key, each in sorts if each == sort]
        if said := [split for split in said if split]:
            return next((split for split in said if split != "train"), "train")
    flags: dict[str, bool] = {}
    for holder, key, _ in (each for each in sorts if each[2] == "flag"):
        value, is_true = holder[key], flag_value(holder[key])
        name = _flag(words_of_name(key))
        if is_true is not None:
            flags.setdefault(name, is_true)
        elif holder is fields and not _is_absent(value) and (name in _SURE_FLAGS or not _is_other_thing(value)):
            raise ValueError(f"field {key!r} must be true, false, 0 or 1, not {value!r}"[:200])
    said = [FLAGS[name][not flags[name]] for name in FLAGS if name in flags]
    # one set apart from training by two flags is what the one that is true says
    return next((split for split in reversed(said) if split in ("test", "validation")), next(filter(None, said), ""))


def _flag(words: tuple[str, ...]) -> str:
    """The flag that the words of a field's name are, whatever stands between them (`isTest`, `is_test_set`)."""
    name = "_".join(words).removesuffix("_split").removesuffix("_set")
    return name if name in FLAGS else ""


def flag_value(value) -> bool | None:
    """What true, false, 0 and 1 say, as numbers or as the text of a table ("False", "0.0", "no"); None for others."""
    if isinstance(value, str):
        return _TRUTHS.get(value.strip().casefold()) if len(value) < 20 else None
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _is_absent(value) -> bool:
    """Whether the value of a flag is none, in one of the spellings of that."""
    if isinstance(value, str):
        return value.strip().casefold() in _ABSENT
    return value is None or value != value or (isinstance(value, int | float) and value == -1)


def _is_other_thing(value) -> bool:
    """Whether a value is a word or a fraction, so that its field is no flag."""
    if isinstance(value, str):
        return re.search(r"[^\W\d_]|^\s*[-+]?\d{0,9}[.,]\d", value[:200]) is not None
    return isinstance(value, float) and value % 1 != 0
