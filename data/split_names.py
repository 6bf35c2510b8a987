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

An object names its split in `split` (also `Split`, `data_split`, `split_name` ..., and inside `meta` or `metadata`);
in `subset`, `partition`, `set`, `fold`, `phase` or `mode`, which mean other things too, if the whole value is such a
word; or by a flag such as `is_test`. A value that nobody knows sets the document aside: what is held out must not be
trained on.
"""

import re

SPLITS = ("train", "validation", "test")
FIELDS = ("split", "Split", "SPLIT", "data_split", "dataset_split", "split_name", "orig_split", "original_split")
"""Fields that name a split and nothing else."""
LOOSE_FIELDS = (
    "partition",
    "subset",
    "set",
    "set_name",
    "subset_name",
    "fold",
    "phase",
    "mode",
    "Fold",
    "Set",
    "Subset",
)
"""Fields that may name one."""
FLAGS = {
    **dict.fromkeys(("is_train", "is_training", "in_train"), ("train", "test")),
    **dict.fromkeys(("is_val", "is_validation", "is_dev", "is_eval"), ("validation", "")),
    **dict.fromkeys(("is_test", "is_testing", "is_heldout", "is_held_out", "is_holdout"), ("test", "")),
}
"""Flag -> what it says when it is true and when it is false; two of them are told in the order given."""
_SAY_IT = frozenset((*FIELDS, *LOOSE_FIELDS, *FLAGS, "meta", "metadata"))
_OF_SPLIT = {
    "train": "train training trainset traindata trainsplit trainlist trn trainval trainvalid restval",
    "validation": "validation validate val valid dev devel development eval evaluation valset devset evalset valdata "
    "devdata evaldata validset validationset valsplit devsplit vallist minival",
    "test": "test testing testset testdata testsplit testlist tst testdev teststd heldout holdout",
}
WORDS = {word: split for split, words in _OF_SPLIT.items() for word in words.split()}
"""Word, in lower case -> split."""
_ALL = re.compile(r"[^\W\d_]+")
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


def own_split(fields: dict) -> str:
    """The split that an object names itself; "" for none. Raises ValueError naming the field."""
    if _SAY_IT.isdisjoint(fields):
        return ""
    for holder in (fields, fields.get("meta"), fields.get("metadata")):
        for key in FIELDS if isinstance(holder, dict) else ():
            try:
                if found := split_of_word(holder.get(key)):
                    return found
            except ValueError as error:
                # what stands deeper may be of another kind
                if holder is fields:
                    raise ValueError(f"field {key!r} {error}") from None
    for key in LOOSE_FIELDS:
        value = fields.get(key)
        if isinstance(value, str) and (found := WORDS.get(value.strip().casefold())):
            return found
    said = [FLAGS[key][not fields[key]] for key in FLAGS if _is_flag(fields.get(key))]
    held_out = [split for split in said if split in ("test", "validation")]
    # one set apart from training by two flags is what the one that is true says
    return next((split for split in reversed(held_out)), next(filter(None, said), ""))


def _is_flag(value) -> bool:
    return isinstance(value, bool | int) and value in (0, 1)
