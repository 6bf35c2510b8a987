"""A mask in the place of spans is told, with the spans to make in its place.

It ended in an error about an attribute that masks do not have.
"""

import numpy as np
import pytest
import torch

from brine.kernels.attention import Spans, attention

MASKS = {
    "bool": torch.ones(4, 4, dtype=torch.bool).tril(),
    "bool-of-heads": torch.ones(1, 2, 4, 4, dtype=torch.bool),
    "float": torch.zeros(1, 1, 4, 4),
    "numpy": np.tril(np.ones((4, 4), bool)),
    "none": None,
    "list": [[True, False], [True, True]],
    "word": "causal",
    "flag": True,
    "document-ids": torch.zeros(1, 4, dtype=torch.int32),
    "lo-and-hi": (torch.zeros(1, 4, dtype=torch.int32), torch.ones(1, 4, dtype=torch.int32)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_mask_is_no_spans(mask, backend):
    x = torch.zeros(1, 4, 2, 8)
    with pytest.raises(TypeError) as told:
        attention(x, x, x, mask, backend=backend)
    said = str(told.value)
    assert "Spans.packed(" in said and "causal" in said and "window=" in said
    if hasattr(mask, "shape"):
        assert str(tuple(mask.shape)) in said
    # the causal spans that it names, as it names them
    recipe = said[said.index("causal: ") + len("causal: ") : said.index("; packed documents")]
    out = attention(x, x, x, eval(recipe, {"Spans": Spans, "torch": torch, "q": x}))
    assert out.shape == x.shape


NAMED = {
    "attn_mask": torch.ones(4, 4, dtype=torch.bool).tril(),
    "mask": np.zeros((4, 4)),
    "is_causal": True,
    "causal": True,
    "key_padding_mask": torch.ones(1, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("beside_spans", [False, True], ids=["alone", "beside-spans"])
@pytest.mark.parametrize("name", NAMED)
def test_a_mask_under_its_name_elsewhere_is_told(name, beside_spans):
    """Python says of an unknown argument that it is unknown, and no more."""
    x = torch.zeros(1, 4, 2, 8)
    spans = {"spans": Spans.packed(torch.zeros(1, 4, dtype=torch.int32))} if beside_spans else {}
    with pytest.raises(
        TypeError, match=rf"not {name}.*from brine.kernels.attention import Spans; causal: Spans.packed\("
    ):
        attention(x, x, x, **{name: NAMED[name]}, **spans)


def test_no_mask_at_all_and_other_names():
    x = torch.zeros(1, 4, 2, 8)
    with pytest.raises(TypeError, match=r"not None.*Spans.packed\("):
        attention(x, x, x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropout_p'"):
        attention(x, x, x, Spans.packed(torch.zeros(1, 4, dtype=torch.int32)), dropout_p=0.1)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_arrays_are_no_tensors(name):
    x = torch.zeros(1, 4, 2, 8)
    given = {"q": x, "k": x, "v": x} | {name: x.numpy()}
    with pytest.raises(TypeError, match=f"^{name} must be a float tensor.*ndarray"):
        attention(**given, spans=Spans.packed(torch.zeros(1, 4, dtype=torch.int32)))


@pytest.mark.parametrize(("rows", "keys"), [(1, 4), (2, 3), (3, 7), (4, 4)], ids=str)
def test_behind_a_cache_the_spans_that_are_told_are_those_of_the_rows(rows, keys):
    """Those of all keys were told, which do not fit the rows."""
    q, k = torch.randn(2, rows, 2, 8), torch.randn(2, keys, 2, 8)
    with pytest.raises(TypeError) as told:
        attention(q, k, k, torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows))
    said = str(told.value)
    recipe = said[said.index("causal: ") + len("causal: ") : said.index("; packed documents")]
    out = attention(q, k, k, eval(recipe, {"Spans": Spans, "torch": torch, "q": q}))
    whole = Spans.packed(torch.zeros(2, keys, dtype=torch.int32))
    padded = torch.cat([torch.zeros(2, keys - rows, 2, 8), q], dim=1)
    torch.testing.assert_close(out, attention(padded, k, k, whole)[:, keys - rows :])
