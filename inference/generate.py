"""The command `brine generate`: continue a prompt, or answer as a chat, and print the answer as it is decoded.

    brine generate runs/demo --image shot.png --prompt "..." --audio note.wav
    brine generate runs/chat --chat --image shot.png --message "..."       (`brine.inference.chat`)

Parts of a prompt keep the order of the command line. tyro gathers each option by itself, so the order is read from the
arguments again, once tyro has accepted them.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from brine.common.command_line import command, parse
from brine.data.document import Audio, Image, Part, Text, Video, part_to_json
from brine.data.files.extensions import media_type_of
from brine.inference.load import LoadedModel, find_model_folder, load
from brine.inference.options import ComputeOptions, Run
from brine.inference.prompt import TextFile, TextFileError, media_path_in, read_text_file
from brine.inference.sampling import GenerationConfig

KINDS = {
    "--prompt": Text, "--prompt-file": TextFile, "--image": Image, "--audio": Audio, "--video": Video, "--message": Text
}  # fmt: skip
Texts = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")]
Files = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE")]
LITERAL_HINT = "to give these words as text, write them to a file and give --prompt-file"


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(ComputeOptions):
    """Let a trained model continue a prompt of texts, images, audio and videos.

    Parts may be given several times; they reach the model in the order of the command line, unchanged."""

    run_folder: Run
    """A run (runs/demo), a stage of it, or a model folder."""
    prompt: Texts = ()
    """A text."""
    prompt_file: Files = ()
    """The whole text of a file, in UTF-8."""
    image: Files = ()
    """An image (PNG, JPEG, WebP, ...)."""
    audio: Files = ()
    """Audio (WAV, FLAC, OGG, MP3, ...)."""
    video: Files = ()
    """A video (MP4, WebM, ...), with its audio track."""
    message: Texts = ()
    """With --chat: what the user says."""
    chat: bool = False
    """Use the chat format of training and stop at the end of the answer; without --message or --prompt-file,
    questions are read from standard input, one per line."""
    system: str | None = None
    """With --chat: the system message."""
    answer: GenerationConfig = field(default_factory=GenerationConfig)
    """How tokens are chosen, and how many."""
    parts: tyro.conf.Suppress[tuple[Any, ...]] = ()

    def run(self) -> None:
        """Print the answer as it is decoded. Raises ValueError for a mistake in the request."""
        if self.chat and self.prompt:
            raise ValueError("--prompt is a text to continue: with --chat give --message")
        if not self.chat and (self.message or self.system is not None):
            raise ValueError("--message and --system belong to a conversation: give --chat, or --prompt for a text")
        if not self.parts and not self.chat:
            # a mistyped folder before a missing prompt
            if not self.run_folder.exists():
                find_model_folder(self.run_folder)
            raise ValueError("the prompt is empty: give --prompt, --prompt-file, --image, --audio or --video")
        check_prompt_text([*self.parts, *([Text(self.system)] if self.system else [])])
        device, compute_dtype = self.resolve()
        loaded = load(self.run_folder, device=device)
        options = vars(replace(self.answer, compute_dtype=compute_dtype)) | {"progress": True}
        if not self.chat:
            _print_stream(loaded.generate(self.parts, **options))
            return
        config = loaded.encode_config
        texts = [Text(read_text_file(part, config)) if isinstance(part, TextFile) else part for part in self.parts]
        questions = None if self.message or self.prompt_file else read_questions()
        run_chat(loaded, [part_to_json(part) for part in texts], system=self.system, questions=questions, **options)


def read_request(argv: Sequence[str]) -> GenerateRequest:
    """The request of a command line, its parts in order. Raises ValueError in one line, SystemExit for --help."""
    request, parts = parse("generate", GenerateRequest, argv), []
    for index, word in enumerate(argv):
        name, has_value, value = word.partition("=")
        if kind := KINDS.get(name.replace("_", "-")):
            parts.append(kind(value if has_value else argv[index + 1]))
    return replace(request, parts=tuple(parts))


main = command(
    read_request, out_of_memory="give --dtype bfloat16, fewer --prefill-tokens or --max-tokens, or --device cpu"
)


def check_prompt_text(parts: Iterable[Part | TextFile]) -> None:
    """Raise ValueError for arguments that are, or look like, the path of media."""
    for part in parts:
        if not isinstance(part, Text):
            continue
        try:
            path = media_path_in(part.text, literal_hint=LITERAL_HINT)
        except TextFileError:
            raise ValueError(
                f"{part.text} is a file but not media: give its text with --prompt-file, or media with --image, "
                f"--audio or --video; {LITERAL_HINT}"
            ) from None
        if path is not None:
            option = next(name for name, kind in KINDS.items() if kind is media_type_of(path))
            raise ValueError(f"{path} is the path of a file: give it with {option}; {LITERAL_HINT}")


def run_chat(
    loaded: LoadedModel, content: list[dict[str, Any]], *, system: str | None = None,
    questions: Iterable[str] | None = None, **options: Any,
) -> None:  # fmt: skip
    """Print answers as they are decoded: to `content`, the parts of one question, or to each of `questions`, with
    `content` before the first. options: of `LoadedModel.generate`."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for question in [None] if questions is None else questions:
        try:
            check_prompt_text([] if question is None else [Text(question)])
        except ValueError as error:
            if not _is_interactive():
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        text = [] if question is None else [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": [*content, *text]})
        answer = loaded.chat(messages, **options)
        _print_stream(answer)
        messages.append(answer.message)
        content = []


def _print_stream(chunks: Iterable[str]) -> None:
    for chunk in chunks:
        print(chunk, end="", flush=True)
    print(flush=True)


def _is_interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def read_questions() -> Iterator[str]:
    """Lines of standard input that are not empty, until it ends; none where it is closed."""
    while sys.stdin is not None:
        if _is_interactive():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not text in UTF-8 ({error.reason}): convert it") from None
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
