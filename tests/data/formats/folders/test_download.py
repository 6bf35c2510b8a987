"""A path that is an address or the name of a data set on a hub is told with the command that downloads it."""

from pathlib import Path

import pytest

from brine.common.remote.object_store import RemoteError
from brine.data.cli.main import main
from brine.data.formats.folders.download import how_to_download
from brine.data.formats.open import open_source
from tests.data.format_files import read

SET = "huggingface.co/datasets"
ADDRESSES = {
    "org/name": "hf download org/name --repo-type dataset --local-dir name",
    "datasets/org/name": "hf download org/name --repo-type dataset --local-dir name",
    "org/name@v2": "hf download org/name --repo-type dataset --revision v2 --local-dir name",
    "org/name:config": "hf download org/name --repo-type dataset --local-dir name",
    "hf://datasets/org/name": "hf download org/name --repo-type dataset --local-dir name",
    "hf://datasets/org/name@main/data/0.tar": "hf download org/name data/0.tar --repo-type dataset --local-dir name",
    "hf://datasets/org/name@v1/d/*.parquet": "hf download org/name --repo-type dataset --revision v1 --include "
    "'d/*.parquet' --local-dir name",
    "hf://datasets/org/name@~parquet/all/train/0.parquet": "hf download org/name all/train/0.parquet --repo-type "
    "dataset --revision refs/convert/parquet --local-dir name",
    "hf://datasets/old": "hf download old --repo-type dataset --local-dir old",
    f"https://{SET}/org/name": "hf download org/name --repo-type dataset --local-dir name",
    f"{SET}/org/name": "hf download org/name --repo-type dataset --local-dir name",
    f"https://{SET}/old/resolve/main/a.jsonl": "hf download old a.jsonl --repo-type dataset --local-dir old",
    f"https://{SET}/old/tree/main": "hf download old --repo-type dataset --local-dir old",
    f"https://{SET}/org/name/viewer/default/train": "hf download org/name --repo-type dataset --local-dir name",
    f"https://{SET}/org/name/resolve/main/a.jsonl?download=true": "hf download org/name a.jsonl --repo-type dataset "
    "--local-dir name",
    f"https://{SET}/org/name/resolve/v1.0/a/b c.tar": "hf download org/name 'a/b c.tar' --repo-type dataset --revision "
    "v1.0 --local-dir name",
    f"https://{SET}/org/name/blob/refs%2Fpr%2F3/x.csv": "hf download org/name x.csv --repo-type dataset --revision "
    "refs/pr/3 --local-dir name",
    f"https://{SET}/org/name/tree/main/data": "hf download org/name --repo-type dataset --include 'data/*' --local-dir "
    "name",
    "https://www.kaggle.com/datasets/org/name": "kaggle datasets download -d org/name --unzip -p name",
    "https://kaggle.com/datasets/org/name/versions/3": "kaggle datasets download -d org/name --unzip -p name",
    "https://www.kaggle.com/competitions/birds/data": "kaggle competitions download -c birds -p birds",
    "kaggle://org/name": "kaggle datasets download -d org/name --unzip -p name",
    "https://modelscope.cn/datasets/org/name/files": "modelscope download --dataset org/name --local_dir name",
    "https://github.com/org/name": "git clone https://github.com/org/name name",
    "github.com/org/name": "git clone https://github.com/org/name name",
    "https://github.com/org/name/tree/v2/data": "git clone --branch v2 https://github.com/org/name name",
    "https://github.com/org/name/blob/main/a/b.jsonl": "curl -L -o b.jsonl "
    "https://github.com/org/name/raw/main/a/b.jsonl",
    "https://github.com/org/name/releases/download/v1/a.tar": "curl -L -o a.tar "
    "https://github.com/org/name/releases/download/v1/a.tar",
    "https://gitlab.com/org/name/-/blob/main/a.tar": "curl -L -o a.tar https://gitlab.com/org/name/-/raw/main/a.tar",
    "git@code.example:org/name.git": "git clone git@code.example:org/name.git name",
    "ssh://git@code.example/org/name.git": "git clone ssh://git@code.example/org/name.git name",
    "git+https://code.example/org/name": "git clone https://code.example/org/name name",
    "https://code.example/org/name.git": "git clone https://code.example/org/name.git name",
    "https://drive.google.com/file/d/1a-B/view?usp=sharing": "gdown 1a-B",
    "https://drive.google.com/drive/folders/1a-B": "gdown --folder https://drive.google.com/drive/folders/1a-B",
    "https://www.dropbox.com/s/abc/x.tar?dl=0": "curl -L -o x.tar 'https://dropbox.com/s/abc/x.tar?dl=1'",
    "https://data.example/set/train.jsonl": "curl -L -o train.jsonl https://data.example/set/train.jsonl",
    "http://data.example/a b.tar?x=1&y=2": "curl -L -o 'a b.tar' 'http://data.example/a%20b.tar?x=1&y=2'",
    "http://data.example/s-{000..009}.tar": "curl -L -O 'http://data.example/s-[000-009].tar'",
    "s3://bucket/set": "aws s3 cp --recursive s3://bucket/set set",
    "s3://bucket/a.set/": "aws s3 cp --recursive s3://bucket/a.set/ a.set",
    "s3a://bucket/set/a.tar": "aws s3 cp s3://bucket/set/a.tar a.tar",
    "gs://bucket/set/": "gcloud storage cp --recursive gs://bucket/set .",
    "gs://bucket/a.parquet": "gcloud storage cp gs://bucket/a.parquet a.parquet",
    "abfs://box@account.dfs.core.windows.net/a/b": "azcopy copy https://account.blob.core.windows.net/box/a/b b "
    "--recursive",
    "hdfs://node/a/b": "hdfs dfs -get hdfs://node/a/b b",
    "ftp://data.example/a.tar": "curl -L -o a.tar ftp://data.example/a.tar",
    "pipe:curl -s https://data.example/a.tar": "curl -s https://data.example/a.tar > pipe.tar",
}
TOLD = {
    f"https://{SET.split('/')[0]}/org/name": "no data set's",
    "https://data.example/set": "the address of a web page",
    "https://data.example/set/index.html": "the address of a web page",
    "https://zenodo.org/records/123": "the address of a web page",
    "https://other-hub.example/datasets/org/name": "the address of a web page",
    "file:///data/a%20b.jsonl": "give its path ('/data/a b.jsonl')",
    "file://localhost/data/x": "give its path (/data/x)",
    "az://box/a.tar": "with your account's name for ACCOUNT",
    "gdrive://x/y": "nothing is fetched here",
    "*.jsonl": "it looks like a pattern",
    "here/shard-{0000..0009}.tar": "give the folder of the files (here)",
    "here/{a,b}.jsonl": "it looks like a pattern",
}


@pytest.fixture(autouse=True)
def unreachable(monkeypatch):
    """No object store answers."""

    def mirror(address):
        raise RemoteError("no network")

    monkeypatch.setattr("brine.data.formats.open.mirror", mirror)


@pytest.mark.parametrize("as_path", [False, True], ids=["text", "Path"])
@pytest.mark.parametrize("address", TOLD)
def test_what_no_command_fetches_is_told_as_it_is(tmp_path, monkeypatch, address, as_path):
    """An address of another hub was answered with a command for another data set, one of a page with `curl`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        open_source(Path(address) if as_path else address)
    assert TOLD[address] in str(caught.value) and "hf download" not in str(caught.value)
    assert str(caught.value).startswith(f"{address} does not exist")


def test_how_to_get_the_tool_is_told_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert how_to_download("org/name").count("pip install -U huggingface_hub") == 1
    assert how_to_download("https://kaggle.com/datasets/org/name").count("pip install kaggle") == 1


@pytest.mark.parametrize("host", ["data.example", "huggingface.co", "github.com", "kaggle.com", "drive.google.com"])
@pytest.mark.parametrize(
    "rest", ["", "/", "/datasets", "/datasets/", "//", "/a", "/datasets/a@", "/%", "/\x1b[2J", "/a/b/c?"]
)
def test_odd_addresses_are_refused_like_others(tmp_path, monkeypatch, host, rest):
    monkeypatch.chdir(tmp_path)
    for scheme in ("https://", "hf://", "s3://", "az://", "kaggle://", ""):
        if scheme or "." in host:
            assert isinstance(how_to_download(f"{scheme}{host}{rest}"), str)


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
