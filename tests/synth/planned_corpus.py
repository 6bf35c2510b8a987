"""A plan with tables, charts and interfaces, not rendered, and what its tests need to look into it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from brine.data.files.source_files import read_source
from brine.synth import SynthConfig, SynthCounts
from brine.synth.plan import plan_corpus
from brine.synth.render.code_image import draw_code
from brine.synth.render_worker import Renderer
from brine.synth.sources.code_metrics import measure_code
from brine.synth.sources.features import cluster_near_duplicates, extract_features, split_clusters

LEVELS = (1, 2, 3, 4)
HELD_OUT = ("validation", "test")
EACH = (60, 60, 60, 60)
FEW = (6, 6, 6, 6)
CONFIG = SynthConfig(
    train=SynthCounts(table=EACH, chart=EACH, screen=EACH),
    validation=SynthCounts(table=FEW, chart=FEW, screen=FEW),
    test=SynthCounts(table=FEW, chart=FEW, screen=FEW),
    validation_fraction=0.15,
    test_fraction=0.15,
)


class Planned:
    """A plan that was not rendered, and what it was made from."""

    def __init__(self, folder, config: SynthConfig) -> None:
        self.files, _ = read_source(folder)
        self.features = [extract_features(item.text, language=item.language) for item in self.files]
        self.code_metrics = [measure_code(item.text, language=item.language) for item in self.files]
        self.splits = split_clusters(
            cluster_near_duplicates(self.features, threshold=0.5),
            files=self.files,
            validation_fraction=config.validation_fraction,
            test_fraction=config.test_fraction,
            seed=config.seed,
        )
        self.plan = self.again(config)
        self.text = {item.path: item.text for item in self.files}

    def again(self, config: SynthConfig):
        """Another plan from the same files."""
        common = {"files": self.files, "features": self.features, "splits": self.splits}
        return plan_corpus(config, code_metrics=self.code_metrics, **common)

    def of(self, kind: str, level: int | None = None, split: str | None = None) -> list[tuple[dict, str, str, dict]]:
        """(recipe, last line of the question, answer, document) of the plan's documents of a kind."""
        found = []
        for item in self.plan.documents:
            if item["kind"] == kind and level in (None, item["level"]) and split in (None, item["split"]):
                image, question, answer = item["content"]
                last = question["text"].removesuffix("\n").split("\n")[-1]
                found.append((self.plan.specs[image["image"]], last, answer["text"], item))
        assert found, f"no {kind} of level {level} was planned for {split}"
        return found


def image_of(spec: dict) -> np.ndarray:
    data = drawn(spec)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        return np.asarray(image)


def drawn(spec: dict) -> bytes:
    """The PNG file of a recipe, made in this process."""
    return Renderer(Path(), utterance_timeout_s=1).file_bytes(spec)


def plain(char: str) -> np.ndarray:
    """(16, 8) bool: the ink of a character on the grid of level 1."""
    look = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": -1}
    drawn = np.asarray(draw_code({"language": "text", "lines": [char], **look}).image)
    return drawn[:, :8].mean(axis=2) < 110


def token_texts(panel: dict) -> list[str]:
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
