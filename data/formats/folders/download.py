"""What to do about a path that does not exist but is an address, the name of a data set on a hub, or a pattern.

    how_to_download("org/name")     ": if it is a data set of a hub, download it first by `...`"; "" for a mere path

Nothing is downloaded here: documents are read again whenever a corpus is built, and only what is on disk stays the
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
_KNOWN_HOSTS = {*_HUBS, "github.com", "gitlab.com", "codeberg.org", "kaggle.com", "modelscope.cn", "drive.google.com"}
_KNOWN_HOSTS |= {"zenodo.org", "dropbox.com"}
_LISTED = ("resolve", "blob", "tree", "raw", "viewer", "discussions")
_REVISION = re.compile(r"(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)(?:/(?P<path>.*))?")
_FILE = re.compile(r"\.[A-Za-z0-9]{1,8}")
_PATTERN = re.compile(r"[*?]|\{[^{}/]*(?:\.\.|,)[^{}/]*\}")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PAGE = (
    "the address of a web page, as it seems: find the file's own address there (that of its download link), "
    "download that by `curl -L -O ADDRESS`"
)
_FORGE = r"https?://(?P<forge>(?:github\.com|gitlab\.com|codeberg\.org)/[^/]+/(?P<a>[^/]+?))(?:\.git)?"
_KAGGLE, _KAGGLE_SET = r"(?:kaggle:/|https?://kaggle\.com)", "kaggle datasets download -d {a} --unzip -p {b}"
_MODELSCOPE = "modelscope download --dataset {a} --local_dir {b}"
_COMPETITION = "kaggle competitions download -c {a} -p {a}"
_COMMANDS = (
    (r"https?://.*\.(?:html|htm|php|aspx|jsp)", "", ""),
    (rf"{_KAGGLE}/(?:competitions|c)/(?P<a>[^/]+).*", _COMPETITION, _COMPETITION),
    (
        r"(?:kaggle://(?:datasets/)?|https?://kaggle\.com/datasets/)(?P<a>(?:[^/]+/)?(?P<b>[^/]+))(?:/.*)?",
        *[_KAGGLE_SET] * 2,
    ),
    (r"https?://modelscope\.cn/datasets/(?P<a>[^/]+/(?P<b>[^/]+)).*", *[_MODELSCOPE] * 2),
    (r"https?://drive\.google\.com/(?:.*/)?folders(?:/.*)?", *["gdown --folder {whole}"] * 2),
    (r"https?://drive\.google\.com(?P<rest>/.*)", *["gdown {drive}"] * 2),
    (r"https?://dropbox\.com/.*", "{dropbox}", ""),
    (_FORGE, *["git clone {base} {a}"] * 2),
    (rf"{_FORGE}/(?:-/)?(?:blob|raw|src)/(?P<inside>.+)", "{raw}", ""),
    (rf"{_FORGE}/(?:-/)?(?:tree|src)/(?P<b>[^/]+).*", *["git clone --branch {b} {base} {a}"] * 2),
    (r"(?:(?:ssh|git|git\+[a-z]+):.*|https?:.*\.git)", *["git clone {clone} {folder}"] * 2),
    (r"https?:.*", "{curl}", ""),
    (r"s3[an]?:.*", "aws s3 cp {s3} {out}", "aws s3 cp --recursive {s3} {out}"),
    (r"gc?s:.*", "gcloud storage cp {gs} {out}", "gcloud storage cp --recursive {gs} ."),
    (r"(?:abfss?|wasbs?|az|adl):.*", "azcopy copy {blob} {out}", "azcopy copy {blob} {out} --recursive"),
    (r"(?:hdfs|viewfs|webhdfs):.*", *["hdfs dfs -get {whole} {out}"] * 2),
    (r"rsync:.*", *["rsync -a {whole} {out}"] * 2),
    (r"(?:sftp|scp):.*", *["scp -r {remote} {out}"] * 2),
    (r"ftps?:.*", "{curl}", "wget -r {whole}"),
)
"""(pattern of an address without its query, command for a file, command for anything else); the first that fits."""


def display_path(path: str | Path) -> str:
    """A path for a message, an address with both its slashes, of which a Path has made one."""
    if (address := _ADDRESS.fullmatch(str(path))) is None:
        return str(path)
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
        return _by(f"`git clone {shlex.quote(text)} {shlex.quote(_folder_of_clone(text))}`")
    if (address := _ADDRESS.fullmatch(text)) is not None:
        return _of_address(address["scheme"].lower(), address["rest"])
    host = text.partition("/")[0]
    if host.lower().removeprefix("www.") in _KNOWN_HOSTS and not Path(host).exists():
        return _of_address("https", text)
    if _PATTERN.search(Path(text).name):
        folder = shlex.quote(str(Path(text).parent))
        return f": it looks like a pattern, and none is expanded here: give the folder of the files ({folder})"
    name = _NAME.fullmatch(text)
    # with a folder of the first name it is a path with a slip in it, and so it is with an extension
    if name is None or Path(text).parent.is_dir() or re.fullmatch(r"\.[a-z0-9]{2,7}", Path(text).suffix):
        return ""
    command = _hub(name["name"], name["revision"] or "", "")
    return f": if it is a data set of a hub, download it first by {command} and give the folder"


def _by(command: str) -> str:
    return f": it is an address, so download it first, by {command}, and give what that wrote"


def _of_address(scheme: str, rest: str) -> str:
    if scheme == "file":
        there = shlex.quote("/" + unquote(rest).removeprefix("localhost/").lstrip("/"))
        return f": it is the address of a file, so give its path ({there})"
    plain, _, query = rest.partition("?")
    host, _, inside = plain.partition("#")[0].rstrip("/").partition("/")
    host = host.lower().removeprefix("www.")
    if scheme == "hf" or (scheme in ("http", "https") and host in _HUBS):
        return _of_hub(plain.rstrip("/") if scheme == "hf" else inside)
    name = unquote(inside.rsplit("/", 1)[-1]) or host
    is_file = bool(inside and _FILE.fullmatch(Path(name).suffix)) and not rest.endswith("/")
    for pattern, for_file, for_folder in _COMMANDS:
        match, command = re.fullmatch(pattern, f"{scheme}://{host}/{inside}"), for_file if is_file else for_folder
        if match and (command or pattern.startswith("https?:")):
            break
    else:
        if scheme == "memory":
            return ": only the process that wrote it can read it"
        return f": it is an address ({scheme}), and nothing is fetched here: copy what it names to disk, and give that"
    found, whole = match.groupdict(), f"{scheme}://{rest}"
    box, _, account = host.rpartition("@")
    account = account.partition(".")[0] if box else "ACCOUNT"
    drive = re.search(r"(?:/d/|[?&]id=)([\w-]+)", whole)
    if not command or ("{drive}" in command and not drive):
        return f": it is {_PAGE}, and give what that wrote"
    values = {
        "whole": whole,
        "out": name,
        "drive": drive and drive[1],
        "base": f"https://{found.get('forge')}",
        "clone": whole.removeprefix("git+"),
        "folder": _folder_of_clone(whole),
        "s3": f"s3://{rest}",
        "gs": f"gs://{rest.rstrip('/')}",
        "blob": f"https://{account}.blob.core.windows.net/{box or host}/{inside}".rstrip("/"),
        "remote": f"{host}:/{inside}",
    } | {key: unquote(value) for key, value in found.items() if key in ("a", "b") and value}
    middle, direct = "/-" if host == "gitlab.com" else "", query.replace("dl=0", "dl=1") or "dl=1"
    curls = {
        "curl": _curl(whole, name),
        "raw": _curl(f"{values['base']}{middle}/raw/{found.get('inside')}", name),
        "dropbox": _curl(f"https://{host}/{inside}?{direct}", name),
    }
    quoted = {key: shlex.quote(value) for key, value in values.items() if value}
    tool = command.partition(" ")[0]
    brings = f" (which `pip install {tool}` brings)" if tool in ("kaggle", "modelscope", "gdown") else ""
    note = " (with your account's name for ACCOUNT)" if "{blob}" in command and not box else ""
    return _by(f"`{command.format(**quoted, **curls)}`{brings}{note}")


def _folder_of_clone(address: str) -> str:
    return re.split("[/:]", address.rstrip("/"))[-1].removesuffix(".git") or "repository"


def _curl(address: str, name: str) -> str:
    """The command for a file; of a range in braces, as shards are named, curl makes one address after the other."""
    if _RANGE.search(address):
        return "curl -L -O " + shlex.quote(_RANGE.sub(r"[\1-\2]", address))
    # brackets in an address mean a range to curl
    plain = "-g " if re.search(r"[][{}]", address) else ""
    return f"curl -L {plain}-o {shlex.quote(name)} {shlex.quote(address.replace(' ', '%20'))}"


def _of_hub(inside: str) -> str:
    parts = unquote(inside).split("/")
    if parts[0] != "datasets" or len(parts) < 2:
        return ": it is a model's or a page's address, no data set's: those begin with https://huggingface.co/datasets/"
    # a data set of the hub's early days has no owner
    is_bare = len(parts) == 2 or parts[2] in _LISTED or "@" in parts[1]
    name, rest = "/".join(parts[1 : 2 if is_bare else 3]), parts[2 if is_bare else 3 :]
    name, _, revision = name.partition("@")
    if revision:
        rest = [revision, *rest]
    elif rest and rest[0] in _LISTED:
        rest = rest[1:] if rest[0] in _LISTED[:4] else []
    else:
        rest = ["main", *rest]
    match = _REVISION.fullmatch("/".join(rest))
    revision, path = (match["revision"], match["path"] or "") if match else ("", "")
    revision = {"~parquet": "refs/convert/parquet", "main": ""}.get(revision, revision)
    return _by(_hub(name, revision, path))


def _hub(name: str, revision: str, path: str) -> str:
    is_pattern = bool(_PATTERN.search(path))
    is_file = bool(_FILE.fullmatch(Path(path).suffix)) and not is_pattern
    words = ["hf", "download", name, *([path] if path and is_file else []), "--repo-type", "dataset"]
    words += ["--revision", revision] if revision else []
    words += ["--include", path if is_pattern else f"{path.rstrip('/')}/*"] if path and not is_file else []
    words += ["--local-dir", name.rsplit("/", 1)[-1]]
    return f"`{shlex.join(words)}` (which `pip install -U huggingface_hub` brings)"
