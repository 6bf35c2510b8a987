"""A process that reads source files and renders media; `python -m brine.synth.render_worker FOLDER TIMEOUT_S PIPE`.

A task is (operation, items), its answer a list with one answer for each item; the end of the pipe ends the process.
Media that cannot be rendered are an answer with a reason, not an error.
"""

import os
import signal
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from brine.synth.sources.code_metrics import measure_code
from brine.synth.sources.features import extract_features
from brine.synth.speech.voice import SpeechError, SpeechSynthesizer, render_audio


class Renderer:
    """Renders specs into files below `folder`; starts its speech synthesizer for the first utterance."""

    def __init__(self, folder: Path, *, utterance_timeout_s: float) -> None:
        self.folder = folder
        self.synthesizer = SpeechSynthesizer(timeout_s=utterance_timeout_s)

    def close(self) -> None:
        self.synthesizer.close()

    def render(self, path: str, spec: dict) -> str | None:
        """Writes the file, whole or not at all, and returns None; or returns the reason why it could not be made."""
        try:
            data = self.file_bytes(spec)
        except (SpeechError, ValueError) as error:
            return str(error)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / ".partial" / f"{os.getpid()}-{target.name}"
        temporary.write_bytes(data)
        os.replace(temporary, target)
        return None

    def file_bytes(self, spec: dict) -> bytes:
        """The media file of a spec. Raises SpeechError or ValueError where it cannot be made."""
        if spec["type"] == "audio":
            return render_audio(spec, self.synthesizer)
        # each imports its libraries with its first file
        name = "video" if spec["type"] == "video" else spec.get("renderer", "code_image")
        render = import_module(f"brine.synth.render.{name}").render
        return render(spec, self.synthesizer) if name == "video" else render(spec)


def main(folder: str, utterance_timeout_s: str, pipe: str) -> None:
    """Answers tasks until the pipe ends."""
    # Ctrl-C goes to the whole group; the build closes our pipe when it wants us to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    renderer = Renderer(Path(folder), utterance_timeout_s=float(utterance_timeout_s))
    operations = {"extract": extract_features, "measure": measure_code, "render": renderer.render}
    tasks = Connection(int(pipe))
    try:
        while True:
            operation, items = tasks.recv()
            tasks.send([operations[operation](*item) for item in items])
    except (EOFError, ConnectionError):
        pass
    finally:
        renderer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
