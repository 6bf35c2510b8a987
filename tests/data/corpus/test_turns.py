"""Roles of an encoded corpus, which a model folder keeps."""

import json

import numpy as np
import pytest

from brine.data.corpus.statistics import roles_in
from brine.data.corpus.store import build_corpus
from brine.data.tokenizer import train_tokenizer

CHAT = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"},
                     {"role": "assistant", "content": "b"}]}  # fmt: skip
LLAVA = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
PAGE = {"kind": "page", "content": [{"type": "text", "text": "a page"}]}
CASES = {
    "chats": ([CHAT], ["assistant", "system", "user"]),
    "turns": ([LLAVA], ["assistant", "user"]),
    "pages": ([PAGE, PAGE], []),
    "few-among-many": ([PAGE] * 70 + [LLAVA] + [PAGE] * 70, ["assistant", "user"]),
}


@pytest.mark.parametrize(("rows", "roles"), CASES.values(), ids=list(CASES))
def test_roles_of_conversations_are_found(tmp_path, rows, roles):
    lines = [json.dumps({"id": f"d{number}", **row}) for number, row in enumerate(rows)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    corpus = build_corpus(
        tmp_path / "d.jsonl", tmp_path / "store", tokenizer=train_tokenizer(["a page"] * 4, 267), num_workers=1
    )
    assert roles_in(corpus, np.arange(len(corpus))) == roles
    corpus.close()
