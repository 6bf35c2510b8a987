"""Looking inside changes nothing, and what is seen is what happened; the notebook runs."""

import os

import pytest
import torch

from brine.inference.prompt import batch_prompts
from brine.model.probe import attention_pattern, capture, edit, hook_names, logit_lens
from brine.model.transformer import __doc__ as table
from tests.paths import ROOT


def test_the_table_lists_every_hook_point(make_model):
    """Names and shapes in the docstring of model/transformer.py are those of the model."""
    model = make_model()
    listed = {line.split()[0]: line for line in table.splitlines() if line.startswith("    ") and "(B, " in line}
    points = hook_names(model)
    assert {name.split(".", 2)[2] if name.startswith("blocks.") else name for name in points} == set(listed)
    assert len(points) == 2 + len(model.blocks) * (len(listed) - 2)


def test_shapes_are_those_of_the_table(make_model, make_document):
    model = make_model()
    inputs = batch_prompts([make_document(1), make_document(2)])
    with capture(model) as seen:
        model(inputs)
    batch, length = inputs.token_ids.shape
    size = {"B": batch, "T": length, "S": length, "E": 48, "H": 4, "K": 2, "D": 16, "M": 64}
    for line in table.splitlines():
        if line.startswith("    ") and "(B, " in line:
            name, shape = line.split()[0], line[line.index("(") + 1 : line.index(")")]
            full = name if name in ("embed_out", "final_out") else f"blocks.1.{name}"
            assert seen[full].shape == tuple(size[letter.strip()] for letter in shape.split(",")), name


def test_probing_changes_nothing_and_cleans_up(make_model, make_document):
    model, inputs = make_model(), batch_prompts([make_document(3)])
    before = model(inputs)
    with capture(model) as seen:
        assert torch.equal(model(inputs), before)
    # patching an activation with itself is the identity
    with edit(model, {"blocks.2.attn_out": lambda out: seen["blocks.2.attn_out"]}):
        assert torch.equal(model(inputs), before)
    with pytest.raises(RuntimeError), edit(model, {"blocks.*.mlp_out": torch.zeros_like}):
        assert not torch.equal(model(inputs), before)
        raise RuntimeError
    assert torch.equal(model(inputs), before)
    assert torch.equal(seen["final_out"], before)
    close = torch.testing.assert_close
    close(seen["blocks.0.resid_in"] + seen["blocks.0.attn_out"], seen["blocks.0.resid_mid"])


def test_unknown_points_are_named(make_model):
    with pytest.raises(ValueError, match="no hook point matches 'attn_prob'"), capture(make_model(), "attn_prob"):
        pass


def test_gradients_of_activations(make_model, make_document):
    model = make_model()
    with capture(model, "blocks.*.mlp.act", gradients=True) as seen:
        model(batch_prompts([make_document(4)])).square().sum().backward()
    assert all(activation.grad.abs().sum() > 0 for activation in seen.values())


@pytest.mark.parametrize("layer", [0, 1], ids=["local", "global"])
def test_recomputed_pattern_is_what_attention_did(make_model, make_document, layer):
    model, inputs = make_model(), batch_prompts([make_document(5), make_document(6)])
    with capture(model, f"blocks.{layer}.attn.*") as seen:
        model(inputs)
    spans = inputs.spans(model.config)[int(model.config.is_global(layer))]
    q, k, v, mix = (seen[f"blocks.{layer}.attn.{name}"] for name in ("q", "k", "v", "mix"))
    rows = torch.tensor([0, 7, 20, 30])
    pattern = attention_pattern(q, k, spans, queries=rows)
    assert torch.equal(pattern > 0, spans.dense()[:, rows].unsqueeze(1).expand_as(pattern))
    again = torch.einsum("bhrs,bshd->brhd", pattern.double(), v.repeat_interleave(2, dim=2))
    torch.testing.assert_close(again, mix[:, rows], rtol=1e-4, atol=1e-5)


def test_logit_lens_ends_in_the_logits(make_model, make_document):
    model, inputs = make_model(), batch_prompts([make_document(7)])
    with capture(model, "blocks.*.resid_out") as seen:
        hidden = model(inputs)
    torch.testing.assert_close(logit_lens(model, seen["blocks.3.resid_out"]), (hidden @ model.head_weight.T).float())


@pytest.mark.slow
def test_notebook_runs(model_folder, monkeypatch):
    """From its own folder, on the model that BRINE_RUN names."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("BRINE_RUN", str(model_folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = ROOT / "notebooks" / "probe.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=os.environ.copy())
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert str(model_folder) in printed
