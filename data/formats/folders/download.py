"""What to do about a path that does not exist but is an address, the name of a data set on a hub, or a pattern.

    how_to_download("org/name")     ": if it is a data set of a hub, download it first by `...`"; "" for a mere path
    display_path(path)              the path as it was given, where a Path has made one slash of the two of an address

Nothing is downloaded here: documents are read again whenever a corpus is built, and only what lies on disk stays the
same. A command is named only where it fetches what the address names: the same data set, revision and files.
"""

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

_ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):(?P<slashes>/{1,3})(?P<rest>.+)")
_NAME = re.compile(
    r"(?:datasets/)?(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+)|:[\w.-]+)?"
)
_HUBS = ("huggingface.co", "hf.co")
_FORGES = ("github.com", "gitlab.com", "codeberg.org")
_KNOWN_HOSTS = (*_HUBS, *_FORGES, "kaggle.com", "modelscope.cn", "drive.google.com", "zenodo.org", "dropbox.com")
_LISTED = ("resolve", "blob", "tree", "raw", "viewer", "discussions")
_REVISION = re.compile(r"(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)(?:/(?P<path>.*))?")
_FILE = re.compile(r"\.[A-Za-z0-9]{1,8}")
_PAGES = (".html", ".htm", ".php", ".aspx", ".jsp")
_PATTERN = re.compile(r"[*?]|\{[^{}/]*(?:\.\.|,)[^{}/]*\}")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_STORES = {
    **dict.fromkeys(("s3", "s3a", "s3n"), ("aws s3 cp {s3} {out}", "aws s3 cp --recursive {s3} {out}")),
    **dict.fromkeys(("gs", "gcs"), ("gcloud storage cp {gs} {out}", "gcloud storage cp --recursive {gs} .")),
    **dict.fromkeys(
        ("abfs", "abfss", "wasb", "wasbs", "az", "adl"),
        ("azcopy copy {blob} {out}", "azcopy copy {blob} {out} --recursive"),
    ),
    **dict.fromkeys(("hdfs", "viewfs", "webhdfs"), ("hdfs dfs -get {whole} {out}",) * 2),
    "rsync": ("rsync -a {whole} {out}",) * 2,
    **dict.fromkeys(("sftp", "scp"), ("scp -r {remote} {out}",) * 2),
    **dict.fromkeys(("ftp", "ftps"), ("{curl}", "wget -r {whole}")),
}
"""Scheme -> command for a file, command for a folder."""
_PAGE = (
    "the address of a web page, as it seems: find the file's own address there (that of its download link), "
    "download that by `curl -L -O ADDRESS`"
)


def display_path(path: str | Path) -> str:
    """A path for a message, an address with both its slashes."""
    text = str(path)
    address = _ADDRESS.fullmatch(text)
    if address is None:
        return text
    of_this_machine = address["scheme"].lower() == "file" and not address["rest"].startswith("localhost/")
    slashes = address["slashes"] if len(address["slashes"]) > 1 else "///" if of_this_machine else "//"
    return f"{address['scheme']}:{slashes}{address['rest']}"


def how_to_download(path: str | Path) -> str:
    """The end of a message about the path `path`, at which there is nothing; "" where it looks like a mere path."""
    text = str(path)
    if text.startswith("pipe:"):
        command = re.sub(r"\b(https?|s3|gs|ftp):/(?=[^/])", r"\1://", text.removeprefix("pipe:").strip())
        return f": it is a command, so run it first, by `{command} > pipe.tar`, and give what that wrote"
    if re.fullmatch(r"[\w.-]+@[\w.-]+:[^/].*", text):
        return _by(_clone(text))
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        return _of_address(address["scheme"].lower(), address["rest"])
    host = text.partition("/")[0].lower().removeprefix("www.")
    if host in _KNOWN_HOSTS and not Path(text.partition("/")[0]).exists():
        return _of_address("https", text)
    if _PATTERN.search(Path(text).name):
        folder = shlex.quote(str(Path(text).parent))
        return f": it looks like a pattern, and none is expanded here: give the folder of the files ({folder})"
    name = _NAME.fullmatch(text)
    # with a folder of the first name it is a path with a slip in it, and so it is with an ending
    if name is None or Path(text).parent.is_dir() or re.fullmatch(r"\.[a-z0-9]{2,7}", Path(text).suffix):
        return ""
    command = _hub(name["name"], name["revision"] or "", "")
    return f": if it is a data set of a hub, download it first by {command} and give the folder"


def _by(command: str, what: str = "an address") -> str:
    return f": it is {what}, so download it first, by {command}, and give what that wrote"


def _of_address(scheme: str, rest: str) -> str:
    """The end of the message on an address."""
    if scheme == "file":
        there = shlex.quote("/" + unquote(rest).removeprefix("localhost/").lstrip("/"))
        return f": it is the address of a file, so give its path ({there})"
    plain, _, query = rest.partition("?")
    plain = plain.partition("#")[0].rstrip("/")
    host, _, inside = plain.partition("/")
    host = host.lower().removeprefix("www.")
    if scheme == "hf":
        return _of_hub(plain)
    if scheme in ("http", "https"):
        return _of_web(scheme, host, inside, query, rest)
    if scheme == "kaggle":
        return _by(_kaggle(plain))
    if scheme in ("ssh", "git") or scheme.startswith("git+"):
        return _by(_clone(f"{scheme.removeprefix('git+')}://{rest}"))
    return _of_store(scheme, host, inside, rest)


def _of_store(scheme: str, host: str, inside: str, rest: str) -> str:
    """The end of the message on an address of an object store, or another scheme."""
    if scheme not in _STORES:
        return f": it is an address ({scheme}), and nothing is fetched here: copy what it names to disk, and give that"
    name = inside.rsplit("/", 1)[-1] or host
    is_file = bool(_FILE.fullmatch(Path(name).suffix)) and not rest.endswith("/")
    box, _, account = host.rpartition("@")
    account, note = (account.partition(".")[0], "") if box else ("ACCOUNT", " (with your account's name for ACCOUNT)")
    addresses = {
        "s3": f"s3://{rest}",
        "gs": f"gs://{rest.rstrip('/')}",
        "blob": f"https://{account}.blob.core.windows.net/{box or host}/{inside}".rstrip("/"),
        "whole": f"{scheme}://{rest}",
        "remote": f"{host}:/{inside}",
        "out": name,
    }
    quoted = {key: shlex.quote(address) for key, address in addresses.items()}
    command = _STORES[scheme][not is_file]
    return _by(
        f"`{command.format(curl=_curl(addresses['whole'], name)[1:-1], **quoted)}`{note * ('{blob}' in command)}"
    )


def _of_web(scheme: str, host: str, inside: str, query: str, rest: str) -> str:
    """The end of the message on an address of the web."""
    parts, name = inside.split("/"), unquote(inside.rsplit("/", 1)[-1])
    whole, command, what = f"{scheme}://{rest}", "", "an address"
    is_file = bool(_FILE.fullmatch(Path(name).suffix)) and Path(name).suffix.lower() not in _PAGES
    if host in _HUBS:
        return _of_hub(inside)
    if host == "kaggle.com" and len(parts) > 1 and parts[0] in ("datasets", "competitions", "c"):
        command = _kaggle(inside)
    elif host == "modelscope.cn" and parts[0] == "datasets" and len(parts) > 2:
        command = f"`modelscope download --dataset {parts[1]}/{parts[2]} --local_dir {parts[2]}`{_brings('modelscope')}"
    elif host == "drive.google.com":
        number = re.search(r"(?:/d/|[?&]id=)([\w-]+)", whole)
        target = f"--folder {shlex.quote(whole)}" if "folders" in parts else number and number[1]
        what, command = ("an address", f"`gdown {target}`{_brings('gdown')}") if target else ("its own page", _PAGE)
    elif host == "dropbox.com" and is_file:
        command = _curl(f"https://{host}/{inside}?{query.replace('dl=0', 'dl=1') or 'dl=1'}", name)
    elif host in _FORGES and len(parts) > 1:
        command = _of_forge(host, parts, is_file)
    if not command and inside.endswith(".git"):
        command = _clone(whole)
    elif not command and is_file:
        command = _curl(whole, name)
    return _by(command, what) if command else f": it is {_PAGE}, and give what that wrote"


def _of_forge(host: str, parts: list[str], is_file: bool) -> str:
    """The command for a repository of a forge, or a file in one; "" for other files and pages there."""
    owner, name, *inside = parts
    inside, name = inside[inside[:1] == ["-"] :], name.removesuffix(".git")
    base = f"https://{host}/{owner}/{name}"
    if not inside:
        return _clone(base)
    if inside[0] in ("blob", "raw", "src") and len(inside) > 2 and is_file:
        middle = "/-" if host == "gitlab.com" else ""
        return _curl(f"{base}{middle}/raw/{'/'.join(inside[1:])}", unquote(inside[-1]))
    if inside[0] in ("tree", "src") and len(inside) > 1:
        # a branch with a slash in it cannot be told from a folder: the folder is the common case
        return f"`git clone --branch {shlex.quote(unquote(inside[1]))} {base} {shlex.quote(name)}`"
    return ""


def _brings(package: str) -> str:
    return f" (which `pip install {package}` brings)"


def _of_hub(inside: str) -> str:
    """The end of the message on what lies behind a hub's host, or behind hf://."""
    parts = unquote(inside).split("/")
    if parts[0] != "datasets" or len(parts) < 2:
        return ": it is a model's or a page's address, no data set's: those begin with https://huggingface.co/datasets/"
    # a data set of the hub's early days has no owner
    is_bare = len(parts) == 2 or parts[2] in _LISTED or "@" in parts[1]
    name, rest = "/".join(parts[1 : 2 if is_bare else 3]), parts[2 if is_bare else 3 :]
    name, _, revision = name.partition("@")
    if revision:
        match = _REVISION.fullmatch("/".join([revision, *rest]))
    elif rest and rest[0] in _LISTED:
        match = _REVISION.fullmatch("/".join(rest[1:])) if rest[0] in _LISTED[:4] else None
    else:
        match = re.fullmatch(r"(?P<revision>)(?P<path>.*)", "/".join(rest))
    revision = (match and match["revision"]) or ""
    revision = "refs/convert/parquet" if revision == "~parquet" else revision
    return _by(_hub(name, "" if revision == "main" else revision, (match and match["path"]) or ""))


def _hub(name: str, revision: str, path: str) -> str:
    """The command for a data set of the hub, or for a file, a folder or a pattern in it."""
    is_pattern = bool(_PATTERN.search(path))
    is_file = bool(_FILE.fullmatch(Path(path).suffix)) and not is_pattern
    words = ["hf", "download", name, *([path] if path and is_file else []), "--repo-type", "dataset"]
    words += ["--revision", revision] if revision else []
    words += ["--include", path if is_pattern else f"{path.rstrip('/')}/*"] if path and not is_file else []
    words += ["--local-dir", name.rsplit("/", 1)[-1]]
    return f"`{shlex.join(words)}` (which `pip install -U huggingface_hub` brings)"


def _kaggle(inside: str) -> str:
    parts = [part for part in inside.split("/") if part]
    if parts[0] in ("competitions", "c"):
        name = shlex.quote(parts[1])
        return f"`kaggle competitions download -c {name} -p {name}`{_brings('kaggle')}"
    parts = parts[parts[0] == "datasets" :][:2]
    name, folder = shlex.quote("/".join(parts)), shlex.quote(parts[-1])
    return f"`kaggle datasets download -d {name} --unzip -p {folder}`{_brings('kaggle')}"


def _clone(address: str) -> str:
    folder = re.split("[/:]", address.rstrip("/"))[-1].removesuffix(".git")
    return f"`git clone {shlex.quote(address)} {shlex.quote(folder or 'repository')}`"


def _curl(address: str, name: str) -> str:
    """The command for a file; of a range in braces, as shards are named, curl makes one address after the other."""
    if _RANGE.search(address):
        ranges = _RANGE.sub(r"[\1-\2]", address)
        return f"`curl -L -O {shlex.quote(ranges)}`"
    # brackets in an address mean a range to curl
    plain = "-g " if re.search(r"[][{}]", address) else ""
    return f"`curl -L {plain}-o {shlex.quote(name)} {shlex.quote(address.replace(' ', '%20'))}`"
