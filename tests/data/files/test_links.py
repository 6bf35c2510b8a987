"""Links into the store that a folder is a view of are read, by the link's name; every other link out is refused."""

import io
import json
import os
from pathlib import Path

import pytest

from brine.data.document import DocumentError
from brine.data.files.resolve import resolve_media
from brine.data.files.walk import walk
from brine.data.formats.open import open_source
from tests.data.format_files import encoded, media, read, tar, texts
from tests.data.media_files import picture


@pytest.fixture(scope="module")
def png(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("material") / "a.png"
    picture(path, 16, 16)
    return path.read_bytes()


def parquet(png: bytes) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": png, "path": "a.png"}], "text": ["wren"]}), stream)
    return stream.getvalue()


def snapshot(hub: Path, files: dict[str, bytes], revision: str = "abc123") -> Path:
    """A hub's cache folder of one data set, as a download leaves it; returns the snapshot."""
    folder = hub / "snapshots" / revision
    (hub / "blobs").mkdir(parents=True, exist_ok=True)
    (hub / "refs").mkdir(exist_ok=True)
    (hub / "refs" / "main").write_text(revision)
    for number, (name, content) in enumerate(files.items()):
        blob, link = hub / "blobs" / f"{number:064x}", folder / name
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def layouts(png: bytes) -> dict[str, dict[str, bytes]]:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "wren"}]
    row = {"image": "m/a.png", "conversations": turns}
    return {
        "tars": {"data/00.tar": tar({"1.png": png, "1.txt": b"wren"}), "data/01.tar": tar({"1.txt": b"heron"})},
        "metadata": {"metadata.jsonl": b'{"file_name": "m/a.png", "text": "wren"}\n', "m/a.png": png},
        "array": {"train.json": json.dumps([row]).encode(), "m/a.png": png},
        "media": {"m/a.png": png, "m/a.txt": b"wren"},
        "pages": {"page.md": b"![a](m/a.png) wren", "m/a.png": png},
        "tar-member": {"x.jsonl": b'{"image": "s.tar::1.png", "text": "wren"}\n', "s.tar": tar({"1.png": png})},
    }


@pytest.mark.parametrize("layout", ["tars", "metadata", "array", "media", "pages", "tar-member"])
def test_snapshots_are_read(tmp_path, png, layout, tokenizer, config):
    folder = snapshot(tmp_path / "datasets--org--name", layouts(png)[layout])
    (tmp_path / "plain").symlink_to(folder)
    for path in (folder, tmp_path / "datasets--org--name", tmp_path / "plain"):
        documents, bad = read(path)
        root = open_source(path).root
        assert not bad and "wren" in texts(documents[0]) and root == folder.resolve()
        assert len(media(documents[0])) == 1 and "abc123" not in documents[0].id
        encoded(documents[0], root, tokenizer, config)
    assert len(documents) == (2 if layout == "tars" else 1)


@pytest.mark.slow
def test_tables_of_a_snapshot_are_read(tmp_path, png, tokenizer, config):
    folder = snapshot(tmp_path, {"data/train-00000.parquet": parquet(png)})
    for path in (folder, folder / "data" / "train-00000.parquet"):
        documents, bad = read(path)
        assert not bad and media(documents[0])[0][1].endswith("train-00000.parquet::0/image")
        encoded(documents[0], open_source(path).root, tokenizer, config)


@pytest.mark.parametrize("name", ["data/00.tar", "metadata.jsonl", "train.json", "x.jsonl"])
def test_files_of_a_snapshot_given_directly(tmp_path, png, name, tokenizer, config, monkeypatch):
    files = next(files for files in layouts(png).values() if name in files)
    folder = snapshot(tmp_path, files)
    monkeypatch.chdir(folder)
    for path in (folder / name, Path(name)):
        documents, bad = read(path)
        source = open_source(path)
        assert not bad and texts(documents[0], loss_mask=True) == "wren"
        assert source.root == (folder / name).parent.resolve() and len(source.fingerprint()) == 64
        encoded(documents[0], source.root, tokenizer, config)


def test_which_snapshot(tmp_path):
    line = b'{"text": "wren"}\n'
    snapshot(tmp_path, {"a.jsonl": line}, "one")
    snapshot(tmp_path, {"b.jsonl": line}, "two")
    assert open_source(tmp_path).root.name == "two"
    (tmp_path / "refs" / "main").unlink()
    with pytest.raises(ValueError, match=r"give one of them .*snapshots/one, .*snapshots/two"):
        open_source(tmp_path)


@pytest.fixture()
def hostile(tmp_path, png):
    """A snapshot whose images lead to many places; all but `good` must be refused."""
    folder = snapshot(tmp_path / "hub", {"good.png": png})
    other = snapshot(tmp_path / "other", {"a.png": png})
    (tmp_path / "secret.png").write_bytes(png)
    (tmp_path / "hub" / "beside.png").write_bytes(png)
    (tmp_path / "hub" / "blobs" / "led").symlink_to(tmp_path / "secret.png")
    targets = {
        "absolute": tmp_path / "secret.png",
        "password": "/etc/passwd",
        "climbs": "../../../secret.png",
        "other-blobs": os.path.relpath((other / "a.png").resolve(), folder),
        "beside-blobs": "../../beside.png",
        "blob-that-is-a-link": "../../blobs/led",
        "dangling": "../../blobs/nothing",
        "device": "/dev/zero",
    }
    for name, target in targets.items():
        (folder / f"{name}.png").symlink_to(target)
    return folder, targets


def test_other_links_stay_refused(hostile):
    folder, targets = hostile
    root = folder.resolve()
    assert resolve_media(root, "good.png", max_file_mib=1).parent.name == "blobs"
    for name in targets:
        words = "download is not complete" if name == "dangling" else "link out of"
        with pytest.raises(DocumentError, match=words):
            resolve_media(root, f"{name}.png", max_file_mib=1)
    problems = dict(walk(root))
    assert problems.pop("good.png") == "" and set(problems) == {f"{name}.png" for name in targets}
    assert all(problems.values())


def test_other_links_are_set_aside_in_a_media_folder(hostile):
    folder, targets = hostile
    for name in (*targets, "good"):
        (folder / f"{name}.txt").write_text("wren")
    documents, bad = read(folder)
    assert [document.id for document in documents] == ["good"]
    assert {item.id for item in bad} == set(targets) and all("link" in item.reason for item in bad)


@pytest.mark.parametrize("trick", ["blobs-a-link", "no-blobs", "no-revision"])
def test_a_layout_that_only_looks_like_a_hub_opens_nothing(tmp_path, png, trick):
    hub = tmp_path / "hub"
    folder = hub / "snapshots" / ("" if trick == "no-revision" else "abc")
    folder.mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x").write_bytes(png)
    if trick == "blobs-a-link":
        (hub / "blobs").symlink_to(tmp_path / "private")
    elif trick == "no-revision":
        (hub / "blobs").mkdir()
        (hub / "blobs" / "x").write_bytes(png)
    target = tmp_path / "private" / "x" if trick == "no-blobs" else hub / "blobs" / "x"
    (folder / "a.png").symlink_to(target)
    with pytest.raises(DocumentError, match="link out of"):
        resolve_media(folder.resolve(), "a.png", max_file_mib=1)


@pytest.mark.parametrize("link", [".git", ".git/annex", ".git/annex/objects"])
def test_a_store_behind_a_link_is_none(tmp_path, png, link):
    """Who gives a folder away may have made any link in it: one in the store's own path would open any folder."""
    folder, private = tmp_path / "f", tmp_path / "private"
    rest = ".git/annex/objects/".removeprefix(f"{link}/")
    (private / rest).mkdir(parents=True)
    (private / rest / "x").write_bytes(png)
    (folder / link).parent.mkdir(parents=True)
    (folder / link).symlink_to(private)
    (folder / "a.png").symlink_to(".git/annex/objects/x")
    with pytest.raises(DocumentError, match="link out of"):
        resolve_media(folder.resolve(), "a.png", max_file_mib=1)


@pytest.mark.parametrize("name", ["s.tar", "m.jsonl", "m.json", "folder"])
def test_a_link_that_is_given_is_followed(tmp_path, png, name):
    real = tmp_path / "real"
    real.mkdir()
    (real / "a.png").write_bytes(png)
    row = {"image": "a.png", "text": "wren"}
    contents = {"s.tar": tar({"1.png": png, "1.txt": b"wren"}), "m.jsonl": json.dumps(row).encode()}
    contents["m.json"] = json.dumps([row]).encode()
    (real / (name if name in contents else "m.jsonl")).write_bytes(contents.get(name, contents["m.jsonl"]))
    (tmp_path / f"link-{name}").symlink_to(real if name == "folder" else real / name)
    documents, bad = read(tmp_path / f"link-{name}")
    assert not bad and len(documents) == 1 and open_source(tmp_path / f"link-{name}").root == real.resolve()


@pytest.mark.parametrize("target", ["/etc/hostname", "../elsewhere.jsonl", "nothing"])
def test_a_manifest_that_leads_out_of_its_folder_is_named(tmp_path, png, target):
    folder = tmp_path / "f"
    folder.mkdir()
    (tmp_path / "elsewhere.jsonl").write_text('{"text": "wren"}\n')
    (folder / "a.png").write_bytes(png)
    (folder / "metadata.jsonl").symlink_to(target)
    with pytest.raises(ValueError, match=r"metadata\.jsonl is a link out of the folder, or to nothing"):
        open_source(folder)


def test_annexed_files_are_read_where_their_content_is(tmp_path, png):
    store = tmp_path / ".git" / "annex" / "objects" / "Wz" / "p3" / "SHA256E-s9--aa.png"
    store.mkdir(parents=True)
    (store / "SHA256E-s9--aa.png").write_bytes(png)
    folder = tmp_path / "birds"
    folder.mkdir()
    for name, key in (("here", "Wz/p3/SHA256E-s9--aa.png/SHA256E-s9--aa.png"), ("gone", "Qq/1x/SHA256E-s9--bb.png/x")):
        (folder / f"{name}.png").symlink_to(f"../.git/annex/objects/{key}")
        (folder / f"{name}.txt").write_text("wren")
    documents, bad = read(folder)
    assert [document.id for document in documents] == ["here"] and len(bad) == 1
    assert "birds" not in bad[0].reason and "`git annex get`" in bad[0].reason
    with pytest.raises(DocumentError, match="git annex get"):
        resolve_media(folder.resolve(), "gone.png", max_file_mib=1)


@pytest.mark.parametrize("target", ["../store/1.png", "../store/deep/../1.png", "twin.png"])
def test_a_medium_linked_beside_its_words_is_read(tmp_path, target):
    """Views of a store within one folder: the link's name decides, and what leads out stays refused."""
    for name in ("store/1.png", "view/twin.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "root" / name, 8, 8)
    (tmp_path / "root/store/deep").mkdir()
    (tmp_path / "out.png").write_bytes(b"x")
    for name, leads in (("heron", target), ("out", "../../out.png")):
        (tmp_path / f"root/view/{name}.png").symlink_to(leads)
        (tmp_path / f"root/view/{name}.txt").write_text(name)
    documents, bad = read(tmp_path / "root")
    assert [media(document)[0][1] for document in documents] == ["view/heron.png"]
    assert "out of the folder" in next(item.reason for item in bad if item.id == "view/out")


def two_splits(png: bytes) -> dict[str, dict[str, bytes]]:
    """Files of a data set with a test split, whose names say so and those of blobs do not."""
    return {
        "tars": {f"{split}-0.tar": tar({"1.png": png, "1.txt": split.encode()}) for split in ("train", "test")},
        "lines": {f"{split}.jsonl": b'{"text": "%s"}\n' % split.encode() for split in ("train", "test")},
        "captions": {f"{split}/1{end}": content for split in ("train", "test")
                     for end, content in ((".png", png), (".txt", split.encode()))},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["tars", "lines", "captions"])
@pytest.mark.parametrize("refs", ["main", "none", "of a branch"])
def test_each_level_of_a_hub_cache(tmp_path, png, kind, refs):
    """Without refs (a revision given by its hash) blobs were read under hash names, and the test split trained on."""
    hub = tmp_path / "hub"
    folder = snapshot(hub / "datasets--org--name", two_splits(png)[kind])
    (hub / "models--org--other" / "blobs").mkdir(parents=True)
    main = hub / "datasets--org--name" / "refs" / "main"
    if refs != "main":
        main.rename(main.with_name("branch")) if refs == "of a branch" else main.unlink()
    if refs == "none":
        main.parent.rmdir()
    for path in (folder, folder.parent, folder.parent.parent, hub):
        documents, bad = read(path)
        assert open_source(path).root == folder.resolve() and not bad
        assert {(texts(document), document.split) for document in documents} >= {("test", "test")}
        assert ("test", "train") not in {(texts(document), document.split) for document in documents}


@pytest.mark.parametrize("given", ["hub", "data set", "snapshots"])
def test_of_several_revisions_or_data_sets_none_is_guessed(tmp_path, png, given):
    """Old revisions were mixed in."""
    hub = tmp_path / "hub"
    for revision in ("old", "new"):
        folder = snapshot(hub / "datasets--org--name", two_splits(png)["tars"], revision)
    (hub / "datasets--org--name" / "refs" / "main").write_text("a revision that is not here")
    if given == "hub":
        snapshot(hub / "datasets--org--name2", two_splits(png)["lines"])
    path = {"hub": hub, "data set": folder.parent.parent, "snapshots": folder.parent}[given]
    with pytest.raises(ValueError, match=r"give one of them \(.*datasets--org--name"):
        open_source(path)


def test_a_folder_with_a_cache_in_it_does_not_read_its_blobs(tmp_path, png):
    snapshot(tmp_path / "cache" / "hub" / "datasets--org--name", two_splits(png)["tars"])
    with pytest.raises(ValueError, match="holds nothing that is read"):
        open_source(tmp_path / "cache")
    (tmp_path / "cache" / "mine.tar").write_bytes(tar({"1.txt": b"mine"}))
    documents, bad = read(tmp_path / "cache")
    assert not bad and [texts(document) for document in documents] == ["mine"]


@pytest.mark.parametrize("given", ["snapshot", "data set", "file"])
def test_blobs_on_another_disk_are_told(tmp_path, png, given):
    """The message said that the download was not complete, and to download it again."""
    hub = tmp_path / "datasets--org--name"
    folder = snapshot(hub, {"metadata.jsonl": b'{"file_name": "a.png", "text": "x"}', "a.png": png})
    (hub / "blobs").rename(tmp_path / "disk")
    (hub / "blobs").symlink_to(tmp_path / "disk")
    path = {"snapshot": folder, "data set": hub, "file": folder / "a.png"}[given]
    with pytest.raises((ValueError, DocumentError), match=r"blobs' is a link, which is not followed.*cp -rL"):
        resolve_media(folder.resolve(), "a.png", max_file_mib=1) if given == "file" else open_source(path)


@pytest.mark.parametrize("chain", [["own.jsonl"], ["own.jsonl", "again.jsonl"], ["folder"]], ids=" ".join)
def test_an_own_link_to_a_file_of_a_snapshot(tmp_path, png, chain):
    """Its images were looked for among the blobs."""
    folder = snapshot(tmp_path / "hub", {"train.jsonl": b'{"image": "a.png", "text": "wren"}\n', "a.png": png})
    target = folder if chain == ["folder"] else folder / "train.jsonl"
    for name in chain:
        (tmp_path / name).symlink_to(target)
        target = tmp_path / name
    documents, bad = read(target)
    assert not bad and open_source(target).root == folder.resolve()
    assert resolve_media(folder.resolve(), media(documents[0])[0][1], max_file_mib=1)


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(ValueError, match=r"does not exist or cannot be reached"):
        open_source(tmp_path / "a.jsonl")
