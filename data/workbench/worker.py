"""A process that reads source files and renders media; `python -m data.workbench.worker`.

Tasks come as JSON lines on stdin, answers leave as JSON lines on stdout, and the end of stdin ends the
process, so it never outlives the build that started it. It is started afresh instead of by multiprocessing,
whose spawned children import the main program again, and with it torch. A medium that cannot be rendered is
an answer with a reason, not an end.

    {"do": "extract", "items": [[text, language], ...]}            -> [Extract fields, ...]
    {"do": "measure", "items": [[text, language], ...]}            -> [Measures fields, ...]
    {"do": "render", "items": [[relative path, recipe], ...]}      -> [null | reason, ...]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from data.workbench.extract import extract
from data.workbench.numbers import measure
from data.workbench.speech import Speaker, SpeechError


class Renderer:
    """Renders recipes into files below `folder`; starts its speaker when something is first to be said."""

    def __init__(self, folder: Path, *, utterance_timeout_s: float) -> None:
        self.folder = folder
        self.partial = folder / ".partial"
        self.utterance_timeout_s = utterance_timeout_s
        self._speaker: Speaker | None = None

    def close(self) -> None:
        if self._speaker is not None:
            self._speaker.close()
            self._speaker = None

    def render(self, path: str, recipe: dict) -> str | None:
        """Writes the file and returns None, or returns the reason why it could not be made.

        The file appears whole or not at all: it is written aside and renamed.
        """
        try:
            data = self._bytes(recipe)
        except (SpeechError, ValueError) as error:
            return str(error)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = self.partial / f"{os.getpid()}-{target.name}"
        aside.write_bytes(data)
        os.replace(aside, target)
        return None

    def _bytes(self, recipe: dict) -> bytes:
        kind = recipe["type"]
        if kind == "image":
            return _renderer_of(recipe)(recipe)
        if kind == "audio":
            from data.workbench.speech import render_audio

            return render_audio(recipe, self._talking())
        from data.workbench.film import render_video

        return render_video(recipe, self._talking() if recipe["sound"] else None)

    def _talking(self) -> Speaker:
        if self._speaker is None:
            self._speaker = Speaker(timeout_s=self.utterance_timeout_s)
        return self._speaker


def _renderer_of(recipe: dict) -> Callable[[dict], bytes]:
    """What draws an image recipe; each imports its libraries when it first draws."""
    draw = recipe.get("draw", "code")
    if draw == "table":
        from data.workbench.table import render_table

        return render_table
    if draw == "chart":
        from data.workbench.chart import render_chart

        return render_chart
    if draw == "screen":
        from data.workbench.screen import render_screen

        return render_screen
    from data.workbench.picture import render_image

    return render_image


def main(folder: str, utterance_timeout_s: str) -> None:
    # Ctrl-C goes to the whole group; the build closes our input when it wants us to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # what a library prints must not get between the answers
    os.dup2(2, 1)
    renderer = Renderer(Path(folder), utterance_timeout_s=float(utterance_timeout_s))
    try:
        for line in sys.stdin:
            task = json.loads(line)
            if task["do"] == "extract":
                result = [asdict(extract(text, language=language)) for text, language in task["items"]]
            elif task["do"] == "measure":
                result = [asdict(measure(text, language=language)) for text, language in task["items"]]
            else:
                result = [renderer.render(path, recipe) for path, recipe in task["items"]]
            answers.write(json.dumps(result) + "\n")
            answers.flush()
    except BrokenPipeError:
        pass
    finally:
        renderer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
