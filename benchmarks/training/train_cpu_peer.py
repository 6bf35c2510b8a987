"""The peer of the training benchmark: transformers' LlamaForCausalLM, in a process and an environment of its own.

This file stands alone. It is copied to a folder away from the project and run there by an interpreter that has torch
and transformers and does not see the project: transformers looks for a package named `kernels`, and ours is not it.
It imports nothing of Brine; Brine's side (`train_cpu_ours.py`) imports `serve` from here, so both speak alike.

A child reads one JSON object a line from its standard input and answers one a line:

    {"do": "load", ...spec}               -> {"parameters", "versions"}   build model and optimiser
    {"do": "case", "name": "packed"}      -> {"losses", "note"}           masks, compilation, warm-up; nothing is timed
    {"do": "steps", "count": 2}           -> {"seconds", "losses"}
    {"do": "end"}                         -> {"peak_rss_bytes"}

A failure answers {"error": reason}. Whatever libraries print goes to standard error.

A step is forward, loss, backward, gradient clipping and AdamW (fused), as anyone would write it: the model compiled as
a whole with static shapes, SDPA attention, bf16 autocast over fp32 weights where asked for. Unpacked rows have no mask,
so SDPA takes its causal flash kernel. Packed rows have a dense block-diagonal causal mask, made before any clock
starts, in the form, boolean or additive, in which two trial steps ran faster.

B rows, T tokens a row.
"""

import json
import os
import resource
import sys
import time

import torch

TRIAL_STEPS = 2


def serve(make):
    """Answer requests until the end. make(spec) -> a trainer with `parameters`, `versions`, `case(name)` and
    `step() -> loss tensor`."""
    answers = os.fdopen(os.dup(1), "w")
    # libraries that print must not speak in between
    os.dup2(2, 1)
    trainer = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                torch.set_num_threads(request["threads"])
                # a model that was compiled before must not count against this one
                trainer = None
                if request["compile"]:
                    torch.compiler.reset()
                trainer = make(request)
                answer = {"parameters": trainer.parameters, "versions": trainer.versions}
            elif request["do"] == "case":
                note = trainer.case(request["name"])
                answer = {"losses": [float(trainer.step()) for _ in range(TRIAL_STEPS)], "note": note}
            elif request["do"] == "steps":
                start = time.perf_counter()
                losses = [trainer.step() for _ in range(request["count"])]
                seconds = time.perf_counter() - start
                answer = {"seconds": seconds, "losses": [float(loss) for loss in losses]}
            else:
                # Linux counts KiB, macOS bytes
                unit = 1 if sys.platform == "darwin" else 1024
                answer = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
        except Exception as error:
            words = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        print(json.dumps(answer), file=answers, flush=True)
        if request["do"] == "end":
            return


class LlamaTrainer:
    """LlamaForCausalLM of a given shape, one optimiser step at a time."""

    def __init__(self, spec):
        import transformers
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = spec["shape"]
        torch.manual_seed(spec["seed"])
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape["vocab_size"],
                hidden_size=shape["dim"],
                intermediate_size=shape["mlp_dim"],
                num_hidden_layers=shape["num_layers"],
                num_attention_heads=shape["num_heads"],
                num_key_value_heads=shape["num_kv_heads"],
                head_dim=shape["head_dim"],
                max_position_embeddings=spec["seq_len"],
                tie_word_embeddings=False,
                attention_bias=False,
                use_cache=False,
                attn_implementation="sdpa",
            )
        ).train()
        weights = list(self.model.parameters())
        self.parameters = sum(weight.numel() for weight in weights)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.clip = spec["grad_clip"]
        self.weights = weights
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [w for w in weights if w.ndim >= 2], "weight_decay": spec["weight_decay"]},
                {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
            ],
            lr=spec["learning_rate"],
            betas=tuple(spec["betas"]),
            eps=spec["eps"],
            fused=True,
        )
        self.low = spec["dtype"] == "bfloat16"
        self.run = torch.compile(self.model, dynamic=False) if spec["compile"] else self.model
        self.batches = torch.load(spec["batches"], weights_only=True)
        self.masks = None
        self.at = 0

    def case(self, name):
        """Take the batches of a case, and for packed rows the faster form of mask -> a note on what was taken."""
        self.rows, self.at = self.batches[name], 0
        self.masks = [None] * len(self.rows)
        if name != "packed":
            return "no mask, SDPA's causal mode"
        seen = [dense_mask(batch["document"]) for batch in self.rows]
        dtype = torch.bfloat16 if self.low else torch.float32
        forms = {
            "boolean": seen,
            "additive": [torch.zeros(m.shape, dtype=dtype).masked_fill_(~m, -torch.inf) for m in seen],
        }
        took = {}
        for form, masks in forms.items():
            self.masks = masks
            # compiles, and warms up
            self.step()
            start = time.perf_counter()
            for _ in range(TRIAL_STEPS):
                self.step()
            took[form] = (time.perf_counter() - start) / TRIAL_STEPS
        best = min(took, key=took.get)
        self.masks, self.at = forms[best], 0
        return f"dense {best} mask; a trial step took " + ", ".join(f"{k} {v:.3f} s" for k, v in took.items())

    def step(self):
        """One optimiser step on the next batch -> mean loss of its targets."""
        batch, mask = self.rows[self.at % len(self.rows)], self.masks[self.at % len(self.rows)]
        self.at += 1
        # without a mask, positions are left to the model too, or it would look for documents in them
        position = None if mask is None else batch["place"]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.low):
            loss = self.run(
                input_ids=batch["token_ids"],
                attention_mask=mask,
                position_ids=position,
                labels=batch["labels"],
                shift_labels=batch["labels"],
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def dense_mask(document):
    """(B, T) document ids -> (B, 1, T, T) bool, True where a row sees a key."""
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


if __name__ == "__main__":
    serve(LlamaTrainer)
