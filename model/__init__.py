"""The model room: one decoder-only transformer for text, pictures, sound and video.

    config.py        ModelConfig: every number that decides names and shapes
    embed.py         tokens and patches to vectors
    rotary.py        positions (t, h, w) to turns
    transformer.py   blocks and the model; the table of hook points
    init.py          one table of initial weights
    cache.py         keys and values of what was read
    prompt.py        what a person hands over, as the arguments of a forward
    prompt_paths.py  whether a string of it is words or a path
    chat.py          conversations, in the form of training
    prefill.py       prompts of any length, in chunks
    answering.py     every setting of an answer, with its default
    sampling.py      the next token from logits, by counted numbers
    decode.py        decoding in equal steps that a CUDA graph replays
    decode_cache.py  its keys and values, at addresses that stay
    generate.py      decoding, and `python -m model.generate`
    load.py          model folders: save and load
    probe.py         capture, edit and look at activations
    flops.py         what a forward costs

It knows no parallelism, no loss and no optimiser. Gradients, precision and compilation are the caller's choice.
"""

import sys

from model.config import ModelConfig
from model.load import LoadedModel, load, save_model
from model.transformer import Transformer

__all__ = ["LoadedModel", "ModelConfig", "Transformer", "load", "save_model"]

if sys.argv[:1] == ["-m"]:
    # a module of this room is about to be run
    from data.as_command import only_commands

    only_commands(
        __name__,
        "python -m model.generate, with --chat for conversations (it has --help)",
    )
