"""A data set's card: the splits that the `configs` of its README.md declare, in each style of YAML."""

import time

import pytest

from brine.data.document import Document
from brine.data.formats.folders.dataset_card import read_dataset_card
from brine.data.formats.open import open_source
from tests.data.format_files import media, read, texts
from tests.data.formats.folders.test_whole_folders import lines, told
from tests.data.formats.splits.test_rules import fill
from tests.data.formats.test_containers import table, tar

CARDS = {
    "list": "- config_name: default\n  data_files:\n"
    "  - split: train\n    path: seen*\n  - split: test\n    path: unseen*\n",
    "deep list": "  - data_files:\n"
    "      - path: ['seen*', more/**]\n        split: train\n      - path:\n        - 'unseen*'\n"
    '        - "u/**"\n        split: test\n',
    "map": "- config_name: x\n  data_files:\n    train: seen.jsonl\n    test:\n    - un*\n    - '*/x.jsonl'\n",
    "flow": "  - config_name: x\n    data_files:\n      - {split: train, path: seen*}\n"
    '      - {split: test, path: ["unseen*", "more/**"]}\n',
    "one line": "  [{config_name: x, data_files: [{split: train, path: seen*}, {split: test, path: ./unseen*}]}]\n",
    "JSON": '- {"config_name":"x","data_files":[{"split":"test","path":"unseen*"}]}\n',
    "flow map": "- data_files: {train: 'seen*', test: [unseen*]}\n",
    "anchors": "- config_name: x\n  data_files: &f\n  - split: train\n    path: &s 'seen*'\n  - split: test\n"
    "    path: unseen*\n- config_name: y\n  data_files: *f\n- data_files: [{split: train, path: *s}]\n",
    "merged": "- &x\n  data_dir: ./\n  data_files: [{split: test, path: unseen*}]\n- <<: *x\n  data_dir: other\n",
    "folders": "- data_files: {train: seen.jsonl, test: [unseen.jsonl, unseen.parquet, unseen.tar, unseen/]}\n",
    "address": "- data_files:\n  - split: test\n    path: hf://datasets/org/birds/unseen*\n",
    "several lines": "- data_files: [\n    {split: train,\n     path: seen*}, # the rest\n    {split: test,\n"
    "     path:\n      'unseen*'}\n  ]\n",
    "two": "- config_name: x\n  data_files:\n  - split: train\n    path: s*\n- config_name: y\n  data_files:\n"
    "  - split: Testing\n    path: un*\n",
}


@pytest.mark.parametrize("configs", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".tar"])
def test_the_configs_of_a_card(tmp_path, configs, ending):
    """All was trained on: nothing but the card says which file is the test."""
    fill(tmp_path, {"README.md": f"---\nlicense: mit\nconfigs:\n{configs}size: 3\n---\n# Birds\n"})
    configs = {"seen": [f"a {n}" for n in range(20)], "unseen": ["b 1", "b 2"]}
    for name, words in configs.items():
        if ending == ".tar":
            tar(tmp_path / f"{name}.tar", {f"{n}.txt": word for n, word in enumerate(words)})
        elif ending == ".parquet":
            table(tmp_path / f"{name}.parquet", {"text": words})
        else:
            fill(tmp_path, {f"{name}.jsonl": lines(*words)})
    if ending != ".jsonl" and "seen.jsonl" in (tmp_path / "README.md").read_text():
        return
    splits = {}
    for document in read(tmp_path)[0]:
        splits.setdefault(texts(document)[0], set()).add(document.split)
    assert splits["b"] == {"test"} and "train" in splits["a"] and "test" not in splits["a"]
    assert any("README.md" in line for line in told(tmp_path))


@pytest.mark.parametrize(
    "configs",
    [
        "- data_dir: d/e\n  data_files:\n  - split: test\n    path: y.jsonl\n",
        "- {data_dir: ./d/, data_files: {test: e/*}}\n",
        "- data_files: [{split: test, path: '**'}]\n  data_dir: d\n",
        '- {"data_files":[{"path":["e/y.jsonl"],"split":"test"}],"data_dir":"d"}\n',
        "- data_files: {test: d/}\n",
        "- data_files: {test: e}\n  data_dir: d/\n",
        "- data_dir: d\n  data_files: {test: d/e/y.jsonl}\n",
        "- data_files: {test: d/e/y.jsonl}\nconfigs:\n- data_files: {train: e/*}\n",
    ],
    ids=["block", "flow", "behind", "JSON", "a folder", "a folder in a folder", "a folder twice", "configs twice"],
)
def test_the_paths_of_a_card_are_those_below_its_folder(tmp_path, configs):
    card = f"---\nconfigs:\n{configs}---\n"
    fill(tmp_path, {"README.md": card, "d/e/y.jsonl": lines("a", "b"), "e/y.jsonl": lines("c"), "y.jsonl": lines("d")})
    (tmp_path / "y.jsonl").rename(tmp_path / "e" / "z.jsonl")
    found = {texts(document): document.split for document in read(tmp_path)[0]}
    assert found["a"] == found["b"] == "test" and found["c"] == found["d"] == "train"


ODD_CARDS = {
    "no header": "# Birds\nconfigs:\n- data_files:\n  - split: test\n    path: '**'\n",
    "open": "---\nconfigs:\n- data_files:\n  - split: test\n    path: '**'\n",
    "an anchor": "---\nconfigs: &a\n- data_files:\n  - split: test\n    path: *a\n---\n",
    "climbs": "---\nconfigs:\n- data_files:\n  - split: test\n    path: ../*/a.jsonl\n---\n",
    "an unknown split": "---\nconfigs:\n- data_files:\n  - split: challenge\n    path: '**'\n---\n",
    "not YAML": "---\n}{][\n\tconfigs\n - - - -\n---\n",
    "stars": "---\nconfigs:\n- data_files:\n  - split: test\n    path: " + "*a" * 5000 + "\n---\n",
    "deep": "---\nconfigs:\n" + "".join(f"{' ' * n}data_files:\n" for n in range(300)) + "---\n",
    "bytes": b"---\nconfigs:\n\xff\xfe- data_files: \0\n---\n",
    "long": "---\nconfigs:\n- data_files:\n  - split: test\n    path: '" + "*a" * 5000 + "'\n---\n",
    "itself": "---\nconfigs: &c [*c, {data_files: &d [*d, {split: &s [*s], path: *d}]}, &e {<<: *e}]\n---\n",
    "brackets": "---\nconfigs: " + "[" * 100_000 + "\n---\n",
    "other types": "---\nconfigs:\n- 3\n- data_files: 7\n  data_dir: {a: b}\n"
    "- data_files: {test: 3, 4: '**', ? [a] : b}\n"
    "- data_files: [{split: [test], path: '**'}, {split: true, path: '**'}, {split: test, path: {a: b}}]\n---\n",
}


@pytest.mark.parametrize("card", ODD_CARDS.values(), ids=ODD_CARDS)
def test_other_cards_say_nothing(tmp_path, card):
    fill(tmp_path, {"README.md": card, "a.jsonl": lines(*(f"{n}" for n in range(12)))})
    assert {document.split for document in read(tmp_path)[0]} == {"train", "validation", "test"}


def test_a_card_is_bounded(tmp_path):
    """Aliases of aliases stand for more entries than there are atoms; nothing is made of them."""
    more = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    merged = "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 30))
    repeated = f"f: &f {{split: test, path: '*'}}\nconfigs: [{{data_files: [{', '.join(['*f'] * 40_000)}]}}]\n"
    for body, is_told, num_patterns in (
        (f"a0: &a0 [x, y]\n{more}configs: [{{data_files: [{{split: test, path: *a29}}]}}]\n", False, 0),
        (f"m0: &m0 {{x: y, z: w}}\n{merged}configs: [*m29]\n", True, 0),
        (repeated, True, 1),
    ):
        (tmp_path / "README.md").write_text(f"---\n{body}---\n")
        began = time.process_time()
        card = read_dataset_card(tmp_path)
        assert time.process_time() - began < 3 and len(card.patterns) == num_patterns
        assert card.problem.startswith("its configs have over 100,000 entries") == is_told


def test_a_card_of_many_languages_costs_little(tmp_path):
    configs = "".join(
        f"- data_files: [{{split: train, path: l{n}/a-*}}, {{split: test, path: l{n}/b-*}}]\n" for n in range(800)
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}- data_files: {{validation: '*/c-?'}}\n---\n")
    card = read_dataset_card(tmp_path)
    assert len(card.patterns) == 1601 and not card.problem
    began = time.process_time()
    found = [card.split_of(f"l{n}/{name}-1") for n in range(800) for name in "abcd"]
    assert time.process_time() - began < 1 and found == ["train", "test", "validation", ""] * 800


NO_YAML = {
    "tab": ("license: mit\nconfigs:\n\t- data_files: x\n", "line 4"),
    "open bracket": ("configs: [{data_files: x}\n", "line "),
    "star": ("configs:\n- data_files:\n  - split: test\n    path: *.jsonl\n", "line 5"),
    "no alias": ("configs: *c\n", "found undefined alias"),
    "bytes": ("configs: \0\n", "of odd bytes"),
    "twice": ("a: b\nconfigs: []\n x: y\n", "line "),
}


@pytest.mark.parametrize("header, why", NO_YAML.values(), ids=NO_YAML)
@pytest.mark.parametrize("kind", ["lines", "captions", "pages"])
def test_a_card_that_is_no_yaml_is_told(tmp_path, header, why, kind):
    fill(tmp_path, {"README.md": f"---\n{header}---\n"})
    fill(tmp_path, {"lines": {"a.jsonl": lines("a")}, "captions": {"1.png": b"x", "1.txt": "w"},
                    "pages": {"a.md": "a", "b.md": "b"}}[kind])  # fmt: skip
    (line,) = [line for line in told(tmp_path) if "README.md: its header is not YAML" in line]
    assert "the splits of its configs were not read" in line and why in line


NEARLY_YAML = {
    "a title with a colon": "title: birds: a book\n{}license: mit\n",
    "an address of a person": "{}tags:\n- @heron\n",
    "a year": "year: 2023\n{}",
}


@pytest.mark.parametrize("header", NEARLY_YAML.values(), ids=NEARLY_YAML)
def test_configs_count_in_a_header_that_is_nearly_yaml(tmp_path, header):
    """And names that look like numbers are names."""
    configs = "configs:\n# all of it\n- data_dir: 2024\n\n  data_files:\n  - {split: test, path: y.jsonl}\n"
    configs += "  - {split: 2023, path: x.jsonl}\n"
    fill(
        tmp_path,
        {"README.md": f"---\n{header.format(configs)}---\n", "2024/y.jsonl": lines("a"), "d/x.jsonl": lines("b")},
    )
    assert {texts(document): document.split for document in read(tmp_path)[0]} == {"a": "test", "b": "train"}
    said = "\n".join(told(tmp_path))
    assert "not YAML" not in said and "names unknown splits, which are ignored: 2023" in said


def test_a_card_without_an_end_is_told(tmp_path):
    fill(tmp_path, {"README.md": "---\nconfigs:\n- data_files: x\n", "a.jsonl": lines("a")})
    assert any("its header has no end (a line ---)" in line for line in told(tmp_path))
    fill(tmp_path, {"README.md": "---\nA page on configs\n"})
    assert not any("README" in line for line in told(tmp_path))


def test_a_long_header_is_read(tmp_path):
    fill(tmp_path, {"a.jsonl": lines("a"), "b.jsonl": lines("b")})
    filler = "".join(f"- language_{n}\n" for n in range(20_000))
    card = "configs:\n- data_files: [{split: test, path: b.jsonl}]\n"
    fill(tmp_path, {"README.md": f"---\nlanguages:\n{filler}{card}---\n"})
    assert {texts(document): document.split for document in read(tmp_path)[0]} == {"a": "train", "b": "test"}


@pytest.mark.parametrize("held", [{"unseen/2.png"}, {"unseen/1.png", "unseen/2.png"}], ids=["one", "folder"])
def test_a_card_names_media_of_a_folder(tmp_path, held):
    path = "unseen/**" if len(held) > 1 else "unseen/2.png"
    fill(tmp_path, {"README.md": f"---\nconfigs:\n- data_files:\n  - split: test\n    path: {path}\n---\n"})
    fill(tmp_path, {f"{folder}/{n}.png": b"x" for folder in ("seen", "unseen") for n in (1, 2)})
    fill(tmp_path, {f"{folder}/{n}.txt": "w" for folder in ("seen", "unseen") for n in (1, 2)})
    documents = [item for item in open_source(tmp_path).documents() if isinstance(item, Document)]
    assert {media(document)[0][1] for document in documents if document.split == "test"} == held


@pytest.mark.parametrize("kind", ["lines", "tar", "captions"])
def test_a_card_is_part_of_the_fingerprint_and_odd_names_are_noted(tmp_path, kind):
    """It decides splits; a split of another name was passed over in silence."""
    {"lines": lambda: fill(tmp_path, {"a.jsonl": lines("a")}), "tar": lambda: tar(tmp_path / "a.tar", {"1.txt": "a"}),
     "captions": lambda: fill(tmp_path, {"a/1.png": b"x", "a/1.txt": "w"})}[kind]()  # fmt: skip
    found = [open_source(tmp_path).fingerprint(media=False)]
    for split in ("test", "train", "challenge"):
        card = f"---\nconfigs:\n- data_files:\n  - split: {split}\n    path: '**'\n---\n"
        fill(tmp_path, {"README.md": card})
        found.append(open_source(tmp_path).fingerprint(media=False))
    assert len(set(found)) == 3 and found[0] == found[3]
    assert kind == "captions" or any("unknown splits" in line and "challenge" in line for line in told(tmp_path))
