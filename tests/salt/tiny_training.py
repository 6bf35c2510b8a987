"""A tiny transformer trained on text documents in seconds, without a run folder."""

import random
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from brine.data.batch import collate
from brine.data.config import EncodeConfig
from brine.data.document import Document
from brine.data.encode import assemble
from brine.data.tokenizer import Tokenizer
from brine.inference.load import LoadedModel, load, save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer

ENCODE = EncodeConfig(patch_size=16, mel_bins=16)


def train_tiny(
    folder: Path, documents: list[Document], tokenizer: Tokenizer, *, num_steps: int, dim: int = 64, layers: int = 2,
    batch_size: int = 32, learning_rate: float = 3e-3, seed: int = 0, window: int = 256,
) -> LoadedModel:  # fmt: skip
    """AdamW with a linear decay over batches of documents sampled with replacement, a document a sequence."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=dim, num_layers=layers, num_heads=4, num_kv_heads=2, head_dim=16,
        mlp_dim=2 * dim, window=window, global_every=2, image_dim=ENCODE.image_dim, audio_dim=ENCODE.audio_dim,
        video_dim=ENCODE.video_dim,
    )  # fmt: skip
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    encoded = [assemble(document, [], tokenizer, ENCODE) for document in documents]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50, 1.02 - step / num_steps)
        chosen = rng.choices(range(len(encoded)), k=batch_size)
        longest = max(len(encoded[number]) for number in chosen)
        packed = [
            [(number, len(encoded[number]), encoded[number]), (-1, longest - len(encoded[number]), None)]
            for number in chosen
        ]
        batch = collate(packed, seq_len=longest)
        hidden = model(batch.inputs)
        logits = hidden @ model.head_weight.T
        loss = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    save_model(folder, model, encode_config=ENCODE, tokenizer=tokenizer)
    return load(folder)
