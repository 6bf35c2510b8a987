"""A plan with tables, charts and interfaces, not rendered, and what its tests need to look into it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.workbench import Counts, WorkbenchConfig
from data.workbench.extract import extract
from data.workbench.numbers import measure
from data.workbench.picture import draw_code
from data.workbench.plan import make_plan
from data.workbench.source import read_source
from data.workbench.split import cluster, deal
from data.workbench.worker import Renderer

LEVELS = (1, 2, 3, 4)
HELD_OUT = ("validation", "test")
EACH = (60, 60, 60, 60)
FEW = (6, 6, 6, 6)
CONFIG = WorkbenchConfig(
    train=Counts(table=EACH, chart=EACH, screen=EACH),
    validation=Counts(table=FEW, chart=FEW, screen=FEW),
    test=Counts(table=FEW, chart=FEW, screen=FEW),
    validation_share=0.15,
    test_share=0.15,
)


class Planned:
    """A plan that was not rendered, and what it was made from."""

    def __init__(self, folder, config: WorkbenchConfig) -> None:
        self.files, _ = read_source(folder)
        self.extracts = [extract(item.text, language=item.language) for item in self.files]
        self.measures = [measure(item.text, language=item.language) for item in self.files]
        self.splits = deal(
            cluster(self.extracts, threshold=0.5),
            files=self.files,
            validation_share=config.validation_share,
            test_share=config.test_share,
            seed=config.seed,
        )
        self.plan = self.again(config)
        self.text = {item.path: item.text for item in self.files}

    def again(self, config: WorkbenchConfig):
        """Another plan from the same files."""
        common = {"files": self.files, "extracts": self.extracts, "splits": self.splits}
        return make_plan(config, measures=self.measures, **common)

    def of(self, kind: str, level: int | None = None, split: str | None = None) -> list[tuple[dict, str, str, dict]]:
        """(recipe, last line of the question, answer, document) of the plan's documents of a kind."""
        found = []
        for item in self.plan.documents:
            if item["kind"] == kind and level in (None, item["level"]) and split in (None, item["split"]):
                picture, question, answer = item["content"]
                last = question["text"].removesuffix("\n").split("\n")[-1]
                found.append((self.plan.recipes[picture["image"]], last, answer["text"], item))
        assert found, f"no {kind} of level {level} was planned for {split}"
        return found


def picture_of(recipe: dict) -> np.ndarray:
    data = drawn(recipe)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "RGB", {})
        return np.asarray(picture)


def drawn(recipe: dict) -> bytes:
    """The PNG file of a recipe, made in this process."""
    return Renderer(Path(), utterance_timeout_s=1)._bytes(recipe)


def plain(char: str) -> np.ndarray:
    """(16, 8) bool: the ink of a character on the grid of level 1."""
    look = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": -1}
    drawn = np.asarray(draw_code({"language": "text", "lines": [char], **look}).picture)
    return drawn[:, :8].mean(axis=2) < 110


def words_of(panel: dict) -> list[str]:
    """Every text of a panel, one by one."""
    found = [panel["title"]] if panel["title"] else []
    if panel["panel"] == "form":
        for row in panel["rows"]:
            found += [row[key] for key in ("field", "value", "check") if key in row] + row.get("buttons", [])
    elif panel["panel"] == "menu":
        found += panel["bar"] + panel["items"]
    elif panel["panel"] == "tree":
        found += [text for _depth, text in panel["entries"]]
    else:
        found += [line for command, output in panel["runs"] for line in (command, *output)]
    return found
