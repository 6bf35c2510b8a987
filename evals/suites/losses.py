"""Bits per byte and media gains of a suite's cases, keyed by content.

The denominator of bits per byte is the UTF-8 bytes of the targets, so that tokenizers are comparable. A document's
first token is never a target: where a case begins with target text its bytes count in neither numerator nor
denominator, and they are more for a tokenizer with longer tokens. Cases are packed whole, whatever the model's sequence
length was.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from brine.common.formatting import progress_bar
from brine.data.document import MODALITIES
from brine.data.sequence import MODALITY_CONTEXTS
from brine.evals.config import EvalConfig
from brine.evals.gain import blank_media
from brine.evals.loss import DocumentLosses, measure_losses, token_byte_lengths
from brine.evals.measurement import Measurement, MeasureSpec
from brine.evals.suites.case import SuiteCase
from brine.evals.suites.encode import EncodedCases
from brine.evals.suites.measures import bits_spec, gain_spec
from brine.inference.load import LoadedModel

PACKED_TOKENS = 2048
"""Tokens of a packed sequence, unless a case is longer."""
BATCH_TOKENS = 8192
"""Tokens of a forward pass, unless a case is longer."""


def measure_losses_of_cases(
    loaded: LoadedModel, encoded: EncodedCases, *, compute_dtype: torch.dtype | None
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Bits per byte of all document cases and of each kind, the gain of each modality; and case -> why it has none."""
    cases = [case for case in encoded.cases.values() if case.needles is None]
    if not cases or encoded.corpus is None:
        return {}, {}
    documents = encoded.numbers(cases)
    tokens = np.asarray(encoded.corpus.num_tokens)[documents]
    # few tokens are not padded to a whole sequence
    seq_len = max(int(tokens.max()), min(PACKED_TOKENS, int(tokens.sum())))
    config = EvalConfig(seq_len=seq_len, batch_size=max(1, BATCH_TOKENS // seq_len))
    token_bytes = token_byte_lengths(loaded.tokenizer)

    def measure(chosen: np.ndarray, title: str, **more) -> DocumentLosses:
        with progress_bar(total=len(chosen), desc=title, unit="case", leave=False) as bar:
            return measure_losses(
                loaded.model, encoded.corpus, chosen, token_bytes=token_bytes, config=config,
                compute_dtype=compute_dtype, progress=bar.update, **more,
            )  # fmt: skip

    matched = measure(documents, "loss")
    bits, num_bytes = matched.loss.sum(axis=1) / math.log(2), matched.bytes.sum(axis=1).astype(np.float64)
    finite = np.isfinite(bits)
    reasons = {
        case.id: "its loss is not finite" if not finite[n] else "no byte of it is predicted"
        for n, case in enumerate(cases)
        if not finite[n] or not num_bytes[n]
    }
    good = [n for n, case in enumerate(cases) if case.id not in reasons]
    found = {"": as_measurement(bits_spec(), cases, good, bits, num_bytes)}
    for kind in sorted({case.kind for case in cases}):
        of_kind = [n for n in good if cases[n].kind == kind]
        found[kind] = as_measurement(bits_spec(kind), cases, of_kind, bits, num_bytes)
    for modality in MODALITIES:
        context = MODALITY_CONTEXTS.index(modality)
        chosen = [n for n in good if matched.tokens[n, context]]
        if not chosen:
            continue
        blank = measure(documents[chosen], f"loss, blank {modality}", transform=blank_media(modality))
        above, below = matched.loss[:, context] / math.log(2), np.full(len(cases), np.nan)
        below[chosen] = blank.loss[:, context] / math.log(2)
        for n in chosen:
            if not np.isfinite(below[n]):
                reasons[cases[n].id] = f"its loss with blank {modality} is not finite"
        chosen = [n for n in chosen if np.isfinite(below[n])]
        found[f"gain {modality}"] = as_measurement(gain_spec(modality), cases, chosen, above, below)
    return {each.spec.name: each for each in found.values() if len(each)}, reasons


def as_measurement(
    spec: MeasureSpec, cases: Sequence[SuiteCase], chosen: Sequence[int], numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
) -> Measurement:  # fmt: skip
    """The measurement of the chosen cases, by ascending id; numerator and denominator are given for all of them."""
    order = sorted(chosen, key=lambda n: cases[n].id)
    return Measurement(
        spec, tuple(cases[n].id for n in order), np.array([numerator[n] for n in order], np.float64),
        np.array([denominator[n] for n in order], np.float64), tuple(cases[n].kind for n in order),
        np.array([cases[n].level for n in order], np.int64),
    )  # fmt: skip
