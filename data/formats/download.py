"""What to do about a path that is no path: an address, or the name of a data set on a hub.

    how_to_download("org/name")    ": if it is a data set of a hub, download it first by `...`"; "" for any other path

Nothing is downloaded here: documents are read again whenever a corpus is built, and only what lies on the disk stays
the same. So whoever gives an address is told the command that brings it there. Asked only where there is no such file.
"""

import re
import shlex
from pathlib import Path

# a Path has made one slash of two
_ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?P<rest>.+)")
_ON_HUB = re.compile(r"(?:[^/]+/)?datasets/(?P<name>[\w.-]+/[\w.-]+?)(?:@[^/]+)?(?:/(?P<file>.+))?")
_NAME = re.compile(r"(?:datasets/)?(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
_COPY = {
    "s3": "aws s3 cp --recursive s3://{rest} {folder}",
    "gs": "gcloud storage cp --recursive gs://{rest} {folder}",
    "az": "azcopy copy --recursive az://{rest} {folder}",
    "ssh": "git clone ssh://{rest} {folder}",
    "git": "git clone git://{rest} {folder}",
}


def how_to_download(path: str | Path) -> str:
    """The end of a message about the path `path`, at which there is nothing; "" where it looks like a mere path."""
    text = str(path)
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        command = _command(address["scheme"].lower(), address["rest"])
        return f": it is an address, so download it first, by `{command}`, and give what that wrote"
    name = _NAME.fullmatch(text)
    # with a folder of the first name it is a path with a slip in it, and so it is with an ending
    if name is None or Path(text).parent.is_dir() or re.fullmatch(r"\.[a-z0-9]{2,7}", Path(text).suffix):
        return ""
    return f": if it is a data set of a hub, download it first by `{_hub_command(name['name'])}` and give the folder"


def _command(scheme: str, rest: str) -> str:
    """The command that copies an address here."""
    plain = rest.partition("?")[0].rstrip("/")
    folder = shlex.quote(plain.rsplit("/", 1)[-1].removesuffix(".git") or "DIR")
    on_hub = _ON_HUB.fullmatch(plain) if scheme in ("hf", "http", "https") else None
    if on_hub is not None:
        file = re.sub(r"^(?:resolve|blob|tree|raw)/[^/]+/?", "", on_hub["file"] or "")
        return _hub_command(on_hub["name"], file if Path(file).suffix else "")
    if scheme in _COPY:
        return _COPY[scheme].format(rest=shlex.quote(rest), folder=folder)
    whole = shlex.quote(f"{scheme}://{rest}")
    if plain.endswith(".git"):
        return f"git clone {whole} {folder}"
    return f"curl -L -o {folder} {whole}"


def _hub_command(name: str, file: str = "") -> str:
    file = f" {shlex.quote(file)}" if file else ""
    return f"huggingface-cli download --repo-type dataset {name}{file} --local-dir {name.split('/')[1]}"
