"""The synthetic corpus: multimodal documents made from any source tree."""

from brine.synth.build import build_synth_corpus
from brine.synth.config import SynthConfig, SynthCounts, SynthError

__all__ = ["SynthConfig", "SynthCounts", "SynthError", "build_synth_corpus"]
