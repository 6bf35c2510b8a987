"""Transcriptions and needle answers of a suite's cases, greedily decoded.

References and answers are those of the suite, whatever a model's tokenizer makes of them; edits are counted in
characters. A context with needles is one case, since its questions are not independent.
"""

import torch

from brine.common.formatting import progress_bar
from brine.data.encode import assemble_chunks
from brine.evals.config import EvalConfig
from brine.evals.measurement import Measurement
from brine.evals.needle.run import greedy_answer_fn
from brine.evals.suites.case import SuiteCase
from brine.evals.suites.encode import EncodedCases
from brine.evals.suites.losses import as_measurement
from brine.evals.suites.measures import cer_spec, needle_spec
from brine.evals.transcribe import edit_distance, transcribe
from brine.inference.decode import generate_batch
from brine.inference.load import LoadedModel
from brine.model.device import autocast, device_of
from brine.synth.needles.haystacks import Haystack, NeedleQuestion


def transcribe_cases(
    loaded: LoadedModel, encoded: EncodedCases, *, compute_dtype: torch.dtype | None
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """The character error rate of each modality; and case -> why it was not transcribed."""
    cases = [case for case in encoded.cases.values() if case.transcription is not None]
    if not cases or encoded.corpus is None:
        return {}, {}
    # a reference is never cut: its tokens are at most the bytes of its characters
    longest = max(len(case.transcription.reference.encode()) for case in cases if case.transcription is not None)
    config = EvalConfig(max_new_tokens=16 + 2 * longest)

    def decode(prompts, max_tokens):
        return generate_batch(
            loaded.model, prompts, max_tokens, batch_size=config.decode_batch_size,
            vocab_size=loaded.tokenizer.vocab_size,
        )  # fmt: skip

    numbers = encoded.numbers(cases)
    with autocast(device_of(loaded.model), compute_dtype):
        done = transcribe(encoded.corpus, numbers, decode=decode, tokenizer=loaded.tokenizer, config=config)
    hypotheses = {each.document: each.hypothesis for each in done}
    edits, characters, reasons = [], [], {}
    for case, number in zip(cases, numbers.tolist(), strict=True):
        reference = case.transcription.reference if case.transcription is not None else ""
        characters.append(len(reference))
        if number in hypotheses:
            edits.append(edit_distance(reference, hypotheses[number]))
        else:
            edits.append(0)
            reasons[case.id] = "this model's encoding of it has no transcription"
    found = {}
    for modality in sorted({case.transcription.modality for case in cases if case.transcription is not None}):
        chosen = [n for n, case in enumerate(cases) if case.id not in reasons and _modality(case) == modality]
        measurement = as_measurement(cer_spec(modality), cases, chosen, edits, characters)
        found |= {measurement.spec.name: measurement} if chosen else {}
    return found, reasons


def _modality(case: SuiteCase) -> str | None:
    return case.transcription.modality if case.transcription is not None else None


def answer_needles(
    loaded: LoadedModel, encoded: EncodedCases, *, compute_dtype: torch.dtype | None
) -> dict[str, Measurement]:
    """Exact answers at each length and modality."""
    groups: dict[tuple[int, str], list[SuiteCase]] = {}
    for case in encoded.cases.values():
        if case.needles is not None:
            groups.setdefault((case.needles.length, case.needles.modality), []).append(case)
    answer, found = greedy_answer_fn(loaded, compute_dtype=compute_dtype), {}
    for (length, modality), cases in sorted(groups.items()):
        exact, asked = [], []
        title = f"needles of {modality}, {length:,} tokens"
        for case in progress_bar(cases, desc=title, unit="context", leave=False):
            haystack = _haystack(case, encoded, loaded)
            responses = answer(haystack)
            exact.append(
                sum(
                    response == question.answer
                    for response, question in zip(responses, haystack.questions, strict=True)
                )
            )
            asked.append(len(responses))
        measurement = as_measurement(needle_spec(length, modality), cases, range(len(cases)), exact, asked)
        found[measurement.spec.name] = measurement
    return found


def _haystack(case: SuiteCase, encoded: EncodedCases, loaded: LoadedModel) -> Haystack:
    """The context of a case, without the end token of a document, and its questions behind it."""
    assert encoded.corpus is not None and case.needles is not None
    sequence = encoded.corpus.encoded_document(encoded.number[case.id])
    sequence = sequence.slice(0, len(sequence) - 1)
    position = float(sequence.position[-1].max()) + 1
    questions = tuple(
        NeedleQuestion(
            assemble_chunks(
                [loaded.tokenizer.encode(each.question)], loaded.encode_config, position_offset=position
            ),
            each.answer, each.depth, each.question,
        )
        for each in case.needles.questions
    )  # fmt: skip
    return Haystack(sequence, questions)
