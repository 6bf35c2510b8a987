"""Pages of the documentation's site: README files, the documents in docs/, and a page of docstrings for each package.

A hook of mkdocs (see mkdocs.yml). Nothing is listed by hand: packages are those of pyproject.toml. A page has the path
that its file has in the repository, so that its links hold; links and `names` of source files lead to their docstrings,
and other files that are linked are copied into the site.
"""

import posixpath
import re
import tempfile
import tomllib
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md")
FENCE = re.compile(r"^(```.*?^```|(?: {4}[^\n]*\n)+)", re.M | re.S)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
NAME = re.compile(r"(?<!\[)`([\w./-]+\.(?:py|md))`")


def packages() -> dict[str, Path]:
    """Import name -> folder below the root, of every package in the wheel."""
    names = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    return {name: Path(*name.split(".")[1:]) if "." in name else Path(name) for name in names}


def modules(folder: Path) -> list[str]:
    """Names of the modules in a package's folder, without those that only start a command."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("__"))


def api_page(name: str, folder: Path) -> str:
    """Markdown with a directive of mkdocstrings for a package and each of its modules."""
    blocks = [f"::: {name}\n    options: {{members: false, show_root_heading: false}}"]
    blocks += [f"::: {name}.{module}" for module in modules(folder)]
    return f"# {name}\n\n" + "\n\n".join(blocks) + "\n"


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages, and show the folders at the top as packages of `brine`, as an installed wheel has them."""
    readmes = [(folder / "README.md").as_posix() for folder in packages().values()]
    config.nav = [
        *TEXTS[:1],
        "architecture.md",
        {"Packages": [name for name in readmes if (ROOT / name).is_file()]},
        {"API": [f"api/{name}.md" for name in packages()]},
        *TEXTS[1:],
    ]
    tree = tempfile.TemporaryDirectory(prefix="brine-docs-")
    config.extra["tree"] = tree  # removed with the configuration
    for folder in packages().values():
        copy = Path(tree.name, "brine", *folder.parts[folder.parts[0] == "brine" :])
        copy.mkdir(parents=True, exist_ok=True)
        # `kernels` has none
        if not (copy.parent / "__init__.py").exists():
            (copy.parent / "__init__.py").touch()
        for path in (ROOT / folder).glob("*.py"):
            (copy / path.name).unlink(missing_ok=True)
            (copy / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [tree.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages of docstrings and the files of the repository that pages are made of or link to."""
    texts = [*TEXTS, *(name for name in config.nav[2]["Packages"] if isinstance(name, str))]
    for name in texts:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, folder in packages().items():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(name, folder)))
    for file in files.documentation_pages():
        if not file.src_uri.startswith("api/"):
            for target in LINK.findall(file.content_string):
                add_linked_file(repository_path(file, target[1]), files, config)
    return files


def repository_path(file: File, target: str = "") -> str:
    """Where a page's file lies below the root, or what it links to as `target`."""
    source = file.src_uri if (ROOT / file.src_uri).is_file() else f"docs/{file.src_uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) if target else source


def add_linked_file(path: str, files: Files, config: MkDocsConfig) -> None:
    """Copy a linked file into the site, if it is not there and has no page of docstrings."""
    uri = site_path(path)
    if (ROOT / path).is_file() and "#" not in uri and files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))


def site_path(path: str) -> str:
    """The address in the site of a file of the repository: a page of docstrings for a module of a package."""
    folder, name = posixpath.split(path)
    if name.endswith(".py") and not name.startswith("__"):
        for package, where in packages().items():
            if where.as_posix() == folder:
                return f"api/{package}.md#{package}.{name.removesuffix('.py')}"
    return path.removeprefix("docs/")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links, and names of files in backticks, at pages of the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    start = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match) -> str:
        return match[1] + relative(site_path(repository_path(page.file, match[2])), start) + match[3]

    def name(match: re.Match) -> str:
        for path in (match[1], posixpath.join(posixpath.dirname(repository_path(page.file)), match[1])):
            uri = site_path(path)
            if (ROOT / path).is_file() and files.get_file_from_path(uri.partition("#")[0]) is not None:
                return f"[{match[0]}]({relative(uri, start)})"
        return match[0]

    blocks = FENCE.split(markdown)
    # every second block is code
    blocks[::2] = [NAME.sub(name, LINK.sub(link, block)) for block in blocks[::2]]
    return "".join(blocks)


def relative(uri: str, start: str) -> str:
    """An address as a page in the folder `start` writes it."""
    return posixpath.relpath(uri, start or ".")


class PlainDocstrings(griffe.Extension):
    """Docstrings are plain text: what is indented is shown as it stands, and no character but ` means anything."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrite an object's docstring as Markdown."""
        if obj.docstring:
            obj.docstring.value = markdown_of(obj.docstring.value)


def markdown_of(text: str) -> str:
    """Markdown of a plain docstring: indented lines become blocks of code, a line that begins with -> stays a line."""
    out, code = [], False
    for line in text.expandtabs().splitlines():
        indented = line.startswith("  ")
        if line.strip() and indented != code:
            out, code = [*out, *([""] if indented else []), "```text" if indented else "```"], indented
        if not code:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"([\\<>*_\[\]#|~&])", r"\\\1", part) for part in parts[::2]]
            line = "".join(parts)
            if line.startswith(("-\\>", "Raises ")) and out:
                out[-1] += "  "
        out.append(line)
    return "\n".join([*out, *["```"] * code])
