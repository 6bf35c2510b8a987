"""The peer of the benchmarks of training and generation: transformers' LlamaForCausalLM in its own process.

This file stands alone. It is copied away from the project and run there as `python -I llama_peer.py train|generate`, by
an environment that has transformers.
Nothing is downloaded: weights are random. A process reads one JSON object a line and answers one a line:

    train      {"do": "load", ...spec}           -> {"parameters", "versions"}   build model and optimizer
               {"do": "case", "name": "packed"}  -> {"losses", "note"}           masks, compilation, warmup
               {"do": "steps", "count": 2}       -> {"seconds", "losses"}
               {"do": "end"}                     -> {"peak_rss_bytes"}
    generate   {"do": "load", "shape", "max_tokens", "dtype", "device", "threads"}   -> {"parameters", "versions"}
               {"do": "run", "cache", "batch", "prompt", "new_tokens"}               -> {"first_s", "rest_s"}

A failure answers {"error": reason}; whatever libraries print goes to standard error. Brine's side of training imports
`serve_training` from here, so that both speak alike.

A training step is forward, loss, backward, clipping and fused AdamW, compiled as a whole with static shapes, with SDPA
and bf16 autocast over fp32 weights where asked for. Unpacked sequences have no mask (SDPA's causal flash kernel);
packed ones a dense block-diagonal causal mask, boolean or additive, whichever ran faster in two trial steps. `cache` is
a `cache_implementation` of GenerationConfig: "static" (which transformers compiles on a GPU) or "dynamic"; first_s is
the time to the first new token, rest_s from there to the last one.

B sequences, T tokens each.
"""

import json
import os
import resource
import sys
import time

import torch

TRIAL_STEPS = 2


def serve(answer_to):
    """Answer requests until the end. answer_to: request -> answer; what it raises becomes an error's answer."""
    answers = os.fdopen(os.dup(1), "w")
    # libraries that print must not speak in between
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = answer_to(request)
        except Exception as error:
            words = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        print(json.dumps(answer), file=answers, flush=True)
        if request["do"] == "end":
            return


def serve_training(make):
    """make(spec) -> a trainer with `parameters`, `versions`, `case(name)` and `step() -> loss tensor`."""
    trainer = None

    def answer(request):
        nonlocal trainer
        if request["do"] == "load":
            torch.set_num_threads(request["threads"])
            # a model that was compiled before must not count against this one
            trainer = None
            if request["compile"]:
                torch.compiler.reset()
            trainer = make(request)
            return {"parameters": trainer.parameters, "versions": trainer.versions}
        if request["do"] == "case":
            note = trainer.case(request["name"])
            return {"losses": [float(trainer.step()) for _ in range(TRIAL_STEPS)], "note": note}
        if request["do"] == "steps":
            start = time.perf_counter()
            losses = [trainer.step() for _ in range(request["count"])]
            seconds = time.perf_counter() - start
            return {"seconds": seconds, "losses": [float(loss) for loss in losses]}
        # Linux counts KiB, macOS bytes
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

    serve(answer)


def serve_generation():
    """One model, and its answers to prompts."""
    generator = None

    def answer(request):
        nonlocal generator
        if request["do"] != "load":
            return generator.run(request)
        generator = LlamaGenerator(request)
        return {"parameters": generator.parameters, "versions": generator.versions}

    serve(answer)


class RandomLlama:
    """LlamaForCausalLM of a given shape, with random weights."""

    def __init__(self, shape, *, seed, max_tokens, **more):
        import transformers

        torch.manual_seed(seed)
        self.model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=shape["vocab_size"],
                hidden_size=shape["dim"],
                intermediate_size=shape["mlp_dim"],
                num_hidden_layers=shape["num_layers"],
                num_attention_heads=shape["num_heads"],
                num_key_value_heads=shape["num_kv_heads"],
                head_dim=shape["head_dim"],
                max_position_embeddings=max_tokens,
                tie_word_embeddings=False,
                attn_implementation="sdpa",
                **more,
            )
        )
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}


class LlamaTrainer(RandomLlama):
    """One optimizer step at a time."""

    def __init__(self, spec):
        super().__init__(
            spec["shape"], seed=spec["seed"], max_tokens=spec["seq_len"], attention_bias=False, use_cache=False
        )
        self.model.train()
        weights = list(self.model.parameters())
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
        """Take the batches of a case, and for packed sequences the faster form of mask -> a note on what was taken."""
        self.case_batches, self.at = self.batches[name], 0
        self.masks = [None] * len(self.case_batches)
        if name != "packed":
            return "no mask, SDPA's causal mode"
        seen = [dense_mask(batch["document"]) for batch in self.case_batches]
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
        """One optimizer step on the next batch -> mean loss of its targets."""
        batch, mask = self.case_batches[self.at % len(self.case_batches)], self.masks[self.at % len(self.case_batches)]
        self.at += 1
        # without a mask, positions are left to the model too, or it would look for documents in them
        position = None if mask is None else batch["position"]
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
    """(B, T) document ids -> (B, 1, T, T) bool, True where a query sees a key."""
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


class FirstTokenTimer:
    """A stopping criterion that stops nothing: it is asked after every token, and notes when the first time was."""

    def __init__(self, wait):
        self.wait, self.first = wait, None

    def __call__(self, input_ids, scores, **kwargs):
        if self.first is None:
            self.wait()
            self.first = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class LlamaGenerator(RandomLlama):
    """Greedy answers to random prompts."""

    def __init__(self, spec):
        self.device, self.vocab_size = torch.device(spec["device"]), spec["shape"]["vocab_size"]
        torch.set_num_threads(spec["threads"])
        no_ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
        with self.device:
            super().__init__(spec["shape"], seed=0, max_tokens=spec["max_tokens"], **no_ends)
        self.model = self.model.to(getattr(torch, spec["dtype"])).eval()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, request):
        from transformers import GenerationConfig, StoppingCriteriaList

        size = request["batch"], request["prompt"]
        ids = torch.randint(20, self.vocab_size, size, generator=torch.Generator().manual_seed(1)).to(self.device)
        clock = FirstTokenTimer(self.wait)
        settings = GenerationConfig(
            max_new_tokens=request["new_tokens"],
            do_sample=False,
            pad_token_id=0,
            cache_implementation=None if request["cache"] == "dynamic" else request["cache"],
        )
        self.wait()
        start = time.perf_counter()
        with torch.no_grad():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        self.wait()
        end = time.perf_counter()
        if out.shape[1] != request["prompt"] + request["new_tokens"]:
            raise RuntimeError(f"{out.shape[1] - request['prompt']} tokens came, not {request['new_tokens']}")
        return {"first_s": clock.first - start, "rest_s": end - clock.first}


if __name__ == "__main__":
    if sys.argv[1] == "train":
        serve_training(LlamaTrainer)
    else:
        serve_generation()
