"""The peer of the generation benchmark: transformers' LlamaForCausalLM, in a process that does not see the project.

This file stands alone. It is copied to a folder away from the project and run there, since transformers looks for a
package named `kernels`, and ours is not it. Nothing is downloaded: the model is random, built from its config. A child
reads one JSON object a line from its standard input and answers one a line:

    {"do": "load", "shape", "max_tokens", "dtype", "device", "threads"}    -> {"parameters", "versions"}
    {"do": "run", "cache", "batch", "prompt", "new_tokens"}                -> {"first_s", "rest_s"}

`cache` is a `cache_implementation` of GenerationConfig: "static" (which transformers compiles by itself on a GPU) or
"dynamic". first_s: until the first new token is chosen; rest_s: from there until the last one. A failure answers
{"error": reason}.
"""

import json
import os
import sys
import time

import torch


class FirstTokenTimer:
    """A stopping criterion that stops nothing: it is asked after every token, and notes when the first time was."""

    def __init__(self, wait):
        self.wait, self.first = wait, None

    def __call__(self, input_ids, scores, **kwargs):
        if self.first is None:
            self.wait()
            self.first = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class LlamaGenerator:
    """A random Llama of a given shape."""

    def __init__(self, spec):
        import transformers
        from transformers import LlamaConfig, LlamaForCausalLM

        shape, self.device = spec["shape"], torch.device(spec["device"])
        torch.set_num_threads(spec["threads"])
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["dim"],
            intermediate_size=shape["mlp_dim"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            head_dim=shape["head_dim"],
            max_position_embeddings=spec["max_tokens"],
            tie_word_embeddings=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        with torch.device(self.device):
            self.model = LlamaForCausalLM(config).to(getattr(torch, spec["dtype"])).eval()
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.vocab_size = shape["vocab_size"]

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


def main():
    """Answer requests until the end."""
    answers = os.fdopen(os.dup(1), "w")
    # libraries that print must not speak in between
    os.dup2(2, 1)
    peer = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                peer = LlamaGenerator(request)
                answer = {"parameters": peer.parameters, "versions": peer.versions}
            else:
                answer = peer.run(request)
        except Exception as error:
            words = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
