"""A path that is an address or the name of a data set on a hub is told with the command that downloads it."""

import pytest
from format_files import read

from data.__main__ import main
from data.formats import open_source
from data.formats.download import how_to_download

HUB = "huggingface-cli download --repo-type dataset org/name"
ADDRESSES = {
    "org/name": f"{HUB} --local-dir name",
    "datasets/org/name": f"{HUB} --local-dir name",
    "hf://datasets/org/name": f"{HUB} --local-dir name",
    "hf://datasets/org/name@main/data/0.tar": f"{HUB} data/0.tar --local-dir name",
    "https://hub.example/datasets/org/name": f"{HUB} --local-dir name",
    "https://hub.example/datasets/org/name/resolve/main/a.jsonl?download=true": f"{HUB} a.jsonl --local-dir name",
    "https://hub.example/datasets/org/name/tree/main": f"{HUB} --local-dir name",
    "https://data.example/set/train.jsonl": "curl -L -o train.jsonl https://data.example/set/train.jsonl",
    "http://data.example/a b.tar?x=1&y=2": "curl -L -o 'a b.tar' 'http://data.example/a b.tar?x=1&y=2'",
    "https://code.example/org/name.git": "git clone https://code.example/org/name.git name",
    "s3://bucket/set": "aws s3 cp --recursive s3://bucket/set set",
    "gs://bucket/set/": "gcloud storage cp --recursive gs://bucket/set set",
    "ftp://data.example/a.tar": "curl -L -o a.tar ftp://data.example/a.tar",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_and_names_are_told_with_the_command(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        open_source(address)
    assert f"`{ADDRESSES[address]}`" in str(caught.value) and "does not exist" in str(caught.value)


@pytest.mark.parametrize("path", ["missing", "a/b/c", "/org/name", "here/nmae", "org/name.jsonl", "a b/c"])
def test_a_path_with_a_slip_is_only_a_path(tmp_path, monkeypatch, path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert how_to_download(path) == ""


def test_what_is_there_is_read_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "a.jsonl").write_text('{"text": "wren"}\n')
    assert len(read("org/name")[0]) == 1


@pytest.mark.parametrize("command", [["check"], ["build"], ["show"]], ids=" ".join)
def test_every_command_tells(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    rest = {"build": ["corpus"], "show": ["x"]}.get(command[0], [])
    assert main([*command, "https://data.example/train.jsonl", *rest]) == 2
    assert "curl -L -o train.jsonl https://data.example/train.jsonl" in capsys.readouterr().err
