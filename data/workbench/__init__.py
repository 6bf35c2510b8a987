"""The workbench: a multimodal training corpus made from any source tree.

Programs are the one kind of real material that every machine carries, that can be shown, read aloud and
filmed for nothing, and whose exact transcription is known. From a folder of code this package makes text,
screenshots, narration, screen recordings and pages that interleave them, and tables, charts and user
interfaces with questions, in four levels of difficulty, and splits them so that nothing held out can be read
in the training set.

    config.py     WorkbenchConfig: the source, the counts, the limits
    source.py     finds and reads the source files
    extract.py    names, signatures, sentences of one file; its fingerprint for near-duplicates
    split.py      near-duplicate clusters, dealt to train, validation and test
    lines.py      draws regions of code from one split, never one that train contains
    levels.py     what each level of difficulty allows, as tables
    samples.py    one sample of each medium: its recipe and its transcription
    numbers.py    the numbers of one file; frames.py chooses rows of them to show
    questions.py, screen_questions.py   what is asked about them, and the right answers
    levels_screen.py   what each level of table, chart and screen allows
    figure_samples.py, screen_samples.py   one sample of a table or chart, or of an interface
    needle.py, needle_documents.py, needle_contexts.py   facts to be found in long documents, to train and to measure
    plan.py       every document of the corpus, decided before anything is rendered
    picture.py, table.py, chart.py, screen.py, speech.py, film.py   a recipe to the bytes of a file
    espeak_server.py   the clean process in which speech is synthesised
    worker.py, workers.py            the processes that render, and those who feed them
    build.py      build_workbench: all of it, in order

    from data.workbench import Counts, WorkbenchConfig, build_workbench
    build_workbench(WorkbenchConfig(train=Counts(text=100, screenshot=(1000, 0, 0, 0))), Path("runs/x/corpus"))

The media libraries (the dependency group `corpus`) are imported only where a file is rendered: importing
this package needs nothing but the standard library.
"""

from data.workbench.build import build_workbench
from data.workbench.config import Counts, WorkbenchConfig, WorkbenchError

__all__ = ["Counts", "WorkbenchConfig", "WorkbenchError", "build_workbench"]
