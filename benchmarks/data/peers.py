"""The peers of the data benchmark: transformers' processors, in a process and an environment of their own.

This file stands alone. It is copied to a folder away from the project and run there by an interpreter that has torch,
torchvision, transformers, Pillow and PyAV, and does not see the project. Nothing is downloaded: processors are made
from their classes' own defaults.

    qwen     Qwen2VLImageProcessor, the image processor of Qwen2.5-VL: torchvision on uint8 tensors (once named "Fast")
    qwen-pil its variant on Pillow and numpy
    whisper  WhisperFeatureExtractor: 80 mel bins, torch
    pyav     PyAV, every frame decoded and the wanted ones converted to RGB, then Qwen2VLVideoProcessor

A child reads one JSON object a line from its standard input and answers one a line:

    {"do": "load", "threads"}                        -> {"versions"}
    {"do": "prepare", "name", "inputs", "options"}   -> {"size": [height, width] or [bins, frames]}   one call, untimed
    {"do": "run", "name", "calls"}                   -> {"cpu_s", "wall_s"} of that many calls together

A failure answers {"error": reason}. Whatever libraries print goes to standard error. CPU seconds are those of all
threads of the process, in and outside of the kernel.
"""

import json
import os
import sys
import time

import numpy as np


def qwen_image(inputs, options, *, pil=False):
    """Decoded pixels (H, W, 3) uint8 -> patches; options: max_pixels."""
    if pil:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Processor
    else:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Processor

    processor = Processor(size={"shortest_edge": 56 * 56, "longest_edge": options["max_pixels"]})
    pixels = np.load(inputs)

    def call():
        return processor(pixels, return_tensors="pt")

    _, rows, cols = call()["image_grid_thw"][0].tolist()
    return call, [rows * processor.patch_size, cols * processor.patch_size]


def whisper(inputs, options):
    """(n,) float32 samples at 16 kHz -> log-mel features."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    samples = np.load(inputs)

    def call():
        return extractor(samples, sampling_rate=16000, return_tensors="np")

    return call, list(call()["input_features"].shape[1:])


def pyav_video(inputs, options):
    """A video file -> patches of the frames that `options["frames"]` names; options: max_pixels."""
    import av
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 56 * 56, "longest_edge": options["max_pixels"]}, cap_pixels_per_frame=False
    )
    wanted = set(options["frames"])

    def call():
        frames = []
        with av.open(inputs) as container:
            container.streams.video[0].thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames.append(frame.to_ndarray(format="rgb24"))
        return processor(np.stack(frames), return_tensors="pt")

    pairs, rows, cols = call()["video_grid_thw"][0].tolist()
    if 2 * pairs != len(wanted):
        raise ValueError(f"{2 * pairs} frames came out where {len(wanted)} were asked for")
    return call, [rows * processor.patch_size, cols * processor.patch_size]


PREPARE = {
    "qwen": qwen_image,
    "qwen-pil": lambda inputs, options: qwen_image(inputs, options, pil=True),
    "whisper": whisper,
    "pyav": pyav_video,
}


def load(threads):
    """Set threads -> versions."""
    import av
    import PIL
    import torch
    import torchvision
    import transformers

    torch.set_num_threads(threads)
    packages = {"torch": torch, "torchvision": torchvision, "transformers": transformers, "av": av, "pillow": PIL}
    return {"versions": {name: package.__version__ for name, package in packages.items()}}


def timed(call, calls):
    """CPU and wall seconds of some calls together; the project's side is timed by this function too."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def main():
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # libraries that print must not speak in between
    os.dup2(2, 1)
    ready = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request.get("name")
        try:
            if request["do"] == "load":
                answer = load(request["threads"])
            elif request["do"] == "prepare":
                ready[name], size = PREPARE[name](request["inputs"], request["options"])
                answer = {"size": size}
            else:
                answer = timed(ready[name], request["calls"])
        except Exception as error:
            words = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
