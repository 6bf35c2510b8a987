"""Words that stand for train, validation and test, in fields and in names of folders and files.

    split_of_name("val2017")        "validation", by the first word; `last=True`: by the last; "" for none
    split_words("llava_test_v1")    [(("llava",), "test", ("v",))]: each such word and the words around it
    split_of_word(" Dev_clean ")    "validation": the value of a field `split`; ValueError for an unknown one
    declared_split(fields)          the split that an object names itself; "" for none

A word is a run of letters, in any case; two side by side may be one (`held_out`). Whether a word in the middle of a
name counts depends on its siblings (`brine.data.formats.splits.rules`).
"""

import functools
import re
from collections.abc import Iterable


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as a set: a table of words without quotes."""
    return frozenset(text.split())


SPLITS = ("train", "validation", "test")
HELD_OUT = ("test", "validation")
FIELDS = ("split", "Split", "SPLIT", "data_split", "dataset_split", "split_name", "orig_split", "original_split")
"""Fields that name a split and nothing else."""
_LOOSE = word_set("partition subset set fold phase mode part portion usage datatype")
# words around one of these in a field's name; with `type` or `kind` they are one themselves (`data_type`)
_AROUND = word_set("data dataset sample original orig source name type kind")
# words that may stand beside one for a split in the value of a loose field
_BESIDE = word_set("set data split subset part public private clean other seen unseen full small mini std hard easy")
FLAGS = {
    **dict.fromkeys(("is_train", "is_training", "in_train"), ("train", "test")),
    **dict.fromkeys(("is_val", "is_validation", "is_dev", "is_eval"), ("validation", "")),
    **dict.fromkeys(("is_test", "is_testing", "is_heldout", "is_held_out", "is_holdout"), ("test", "")),
}
"""Flag -> what it says when it is true and when it is false; of two the order counts."""
_TRUTHS = dict.fromkeys(word_set("true 1 1.0 yes t y"), True) | dict.fromkeys(word_set("false 0 0.0 no f n"), False)
_SURE_FLAGS = ("is_test", "is_train", "is_val", "is_validation")
"""Flags that are about a split whatever their value is; others mean more (`is_dev`: "senior")."""
_ABSENT = word_set("none null nil nan <na> na n/a #n/a nat - -- ? unknown undefined missing unspecified unset -1 -1.0")
_OF_SPLIT = {
    "train": "train training trainset traindata trainsplit trainlist trn trainval trainvalid restval",
    "validation": "validation validate val valid dev devel development eval evaluation valset devset evalset valdata "
    "devdata evaldata validset validationset valsplit devsplit vallist minival",
    "test": "test testing testset testdata testsplit testlist tst testdev teststd heldout holdout",
}
WORDS = {word: split for split, words in _OF_SPLIT.items() for word in words.split()}  # word, in lower case -> split
_LETTERS = re.compile(r"[^\W\d_]+")
# a letter with a number behind it, as versions have (v2)
_NUMBERED = re.compile(r"(?<![^\W\d_])([^\W\d_])\d")
# a word of one that joins several by capitals (testImages)
_CAMEL_CASE = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[^A-Z]+")


def prefer_held_out(found: Iterable[str], default: str = "") -> str:
    """The first held-out split of several, else the first."""
    found = list(found)
    return next((split for split in found if split in HELD_OUT), found[0] if found else default)


def split_of_name(name: str, *, last: bool = False) -> str:
    """The split that the first (or last) word of a name stands for; "" when it is none of the table."""
    found = split_words(name)
    return next((split for before, split, after in found if not (after if last else before)), "")


def split_words(name: str) -> list[tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """(words before, split, words after) of each word, or two words, of a name that stands for a split."""
    words, found, start = words_of_name(name), [], 0
    while start < len(words):
        two = words[start : start + 2]
        # two that are one word together say more than the first alone; parts of a word (t-est) are none
        count = 2 if len(two) == 2 and min(map(len, two)) > 2 and "".join(two) in WORDS else 1
        if split := WORDS.get("".join(two[:count])):
            found.append((words[:start], split, words[start + count :]))
        start += count
    return found


def words_of_name(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case: its runs of letters, taken apart where a capital begins one."""
    found: list[str] = []
    for run in _LETTERS.findall(name):
        found += [run] if run.casefold() in WORDS else _CAMEL_CASE.findall(run)
    return tuple(word.casefold() for word in found)


def split_of_word(value) -> str:
    """The split that the value of a field stands for; "" for null and empty text; ValueError for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, str) and len(value) < 200:
        found = split_of_name(value) or split_of_name(value, last=True)
        found = found or next((split for _, split, _ in split_words(value)), "")
        if found:
            return found
    raise ValueError(f"must be one of {', '.join(SPLITS)} (or val, dev, eval ...), not {value!r}"[:200])


@functools.lru_cache(maxsize=8192)
def split_field_kind(name: str) -> str:
    """How a field may name a split, in the order in which they count; "" for a field that does not.

    "own" (`split`; an unknown value is an error), "like" (other names with `split` in them), "loose" (`subset`; only if
    the value is no more than such a word), "flag" (`is_test`: true or false).
    """
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


def split_from_field(name: str, value) -> str:
    """The split that a field which is "like" or "loose" names; "" for none."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    found = split_words(value) if isinstance(value, str) and len(value) <= 60 else []
    if len({split for _, split, _ in found}) != 1:
        return ""
    before, split, after = found[0]
    if split_field_kind(name) == "like":
        # more words are a sentence that was split
        return split if len(words_of_name(value)) <= 3 else ""
    known = _BESIDE.union(words_of_name(name), map(str.casefold, _NUMBERED.findall(value)))
    around = before + (after[1:] if after and len(after[0]) == 1 else after)
    return split if len(found) == 1 and known.issuperset(around) else ""


def declared_split(fields: dict) -> str:
    """The split that an object names itself; "" for none. Raises ValueError naming the field."""
    holders = [each for each in (fields, fields.get("meta"), fields.get("metadata")) if isinstance(each, dict)]
    sorts = [(holder, key, sort) for holder in holders for key in holder if (sort := split_field_kind(str(key)))]
    for holder, key in ((holder, key) for holder in holders for key in FIELDS if sorts and key in holder):
        try:
            if found := split_of_word(holder[key]):
                return found
        except ValueError as error:
            # what is deeper may be of another kind
            if holder is fields:
                raise ValueError(f"field {key!r} {error}") from None
    for sort in ("like", "loose") if sorts else ():
        said = (split_from_field(key, holder[key]) for holder, key, each in sorts if each == sort)
        if split := prefer_held_out(filter(None, said)):
            return split
    flags: dict[str, bool] = {}
    for holder, key in ((holder, key) for holder, key, sort in sorts if sort == "flag"):
        value, name = holder[key], _flag(words_of_name(key))
        if (is_true := flag_value(value)) is not None:
            flags.setdefault(name, is_true)
        elif holder is fields and not _is_absent(value) and (name in _SURE_FLAGS or not _is_other_thing(value)):
            raise ValueError(f"field {key!r} must be true, false, 0 or 1, not {value!r}"[:200])
    by_flags = [FLAGS[name][not flags[name]] for name in FLAGS if name in flags]
    # one set apart from training by two flags is what the one that is true says
    return prefer_held_out(filter(None, reversed(by_flags)))


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
    if isinstance(value, str):
        return not value.strip() or value.strip().casefold() in _ABSENT
    return value is None or value != value or (isinstance(value, int | float) and value == -1)


def _is_other_thing(value) -> bool:
    if isinstance(value, str):
        return re.search(r"[^\W\d_]|^\s*[-+]?\d{0,9}[.,]\d", value[:200]) is not None
    return isinstance(value, float) and value % 1 != 0
