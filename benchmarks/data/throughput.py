"""Throughput of the data package per core against transformers' processors and PyAV, in one run.

    python -m benchmarks.data.throughput                      all cases, about 4 minutes on two cores
    python -m benchmarks.data.throughput --cases image audio  some of them

**Cases.** Decoded arrays in, patches out, one core each:

    image-whole    1008 x 672 pixels: neither side resamples
    image-padded   1000 x 660: ours pads to 1008 x 672, the peers resample to it
    image-scaled   1920 x 1280: both resample to 1008 x 672, the budget given to both
    audio          30 s of 16 kHz audio to log-mel: ours 64 bins in float16, Whisper's 80 in float32; no padding charged
    video-whole    file to patches, 8 s of 672 x 448 H.264 at 24 frames/s, two frames per second taken
    video-scaled   the same at 1344 x 896, frames scaled to 672 x 448
    loader         the demo's training rate with the loader over that on one batch repeated (`benchmarks.data.loader`)

Both sides give float32 patches of the same pixels (checked before anything is timed), on one thread. Differences that
remain: the peer writes each still image twice, as its tubelets want, and normalises by channel; its mel has a floor
that depends on the clip. Rounds alternate, and ratios are of CPU seconds within rounds, all threads of a process
counted; wall seconds are recorded too. The peers run in a virtual environment of their own, made with uv when first
needed, since Brine does not depend on transformers.

Not measured: decoding of images and audio (both sides would use the same libraries), packing (`benchmarks.data.plan`),
GPUs.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import loader as data_loader
from benchmarks.data.peers import timed
from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.implementations import OURS
from benchmarks.harness.measure import spread, summarize, time_interleaved
from benchmarks.harness.peers import WorkerError, WorkerProcess, peer_python, start_peer
from brine.data.config import EncodeConfig
from brine.model.embed import floats
from brine.synth import SynthError

NAME = "data"
TESTS = ("tests/data/corpus/test_determinism.py", "tests/data/test_encode.py", "tests/data/test_loader.py")
PEER_FILE = Path(__file__).parent / "peers.py"
PEER_PACKAGES = ("torchvision", "pillow", "av")
TARGETS = {"image": 1.5, "audio": 1.5, "video": 1.0, "loader": 0.97}
MIN_SAMPLE_S = 0.2
IMAGES = {"image-whole": (672, 1008), "image-padded": (660, 1000), "image-scaled": (1280, 1920)}
IMAGE_SIZE, VIDEO_SIZE = (672, 1008), (448, 672)
"""(height, width) of what comes out."""
VIDEOS = {"video-whole": (448, 672), "video-scaled": (896, 1344)}
AUDIO_S, VIDEO_S, VIDEO_FPS = 30, 8, 24
UNIT = {"image": ("images/s", 1), "audio": ("seconds of audio/s", AUDIO_S), "video": ("videos/s", 1)}
PEERS_OF = {"image": ("qwen", "qwen-pil"), "audio": ("whisper",), "video": ("pyav",)}


def make_picture(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: smooth shades with fine noise, as photographs have."""
    y, x = np.mgrid[0:height, 0:width]
    shade = 127 + 60 * np.sin(x / 90)[..., None] * np.cos(y[..., None] / 70 + np.arange(3))
    noise = np.random.default_rng(height).normal(0, 6, (height, width, 3))
    return np.clip(shade + noise, 0, 255).astype(np.uint8)


def make_sound() -> np.ndarray:
    """(n,) float32: tones over noise."""
    time_s = np.arange(AUDIO_S * 16000) / 16000
    noise = np.random.default_rng(AUDIO_S).normal(0, 0.05, len(time_s))
    return (0.2 * np.sin(2 * np.pi * 220 * time_s) + noise).astype(np.float32)


def make_video(path: Path, height: int, width: int) -> None:
    """An H.264 file in which an image moves a little from frame to frame."""
    import av

    ground = make_picture(height, width)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(VIDEO_S * VIDEO_FPS):
            pixels = np.roll(ground, (number, 3 * number), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _floats(patches: np.ndarray) -> torch.Tensor:
    """What a model computes with, as the peers give it: float32."""
    return floats(torch.from_numpy(patches)).float()


class DataWorker:
    """Our side of a case: a call, and the size of what comes out."""

    def __init__(self, case: str, inputs: Path):
        kind = case.partition("-")[0]
        config = EncodeConfig()
        if kind == "image":
            from brine.data.media.images import fit, patchify

            pixels, budget = np.load(inputs), IMAGE_SIZE[0] * IMAGE_SIZE[1] // config.patch_size**2
            self.size = list(fit(pixels, config, budget).shape[:2])
            self.call = lambda: _floats(patchify(fit(pixels, config, budget), config.patch_size))
        elif kind == "audio":
            from brine.data.media.audio import mel_tokens

            samples = np.load(inputs)
            frames = mel_tokens(samples, config).reshape(-1, config.mel_bins)
            self.size = [config.mel_bins, len(frames)]
            self.call = lambda: _floats(mel_tokens(samples, config))
        else:
            from brine.data.media.video import decode_video

            tokens = VIDEO_SIZE[0] * VIDEO_SIZE[1] // config.patch_size**2
            many = tokens * VIDEO_S
            config = EncodeConfig(max_image_tokens=tokens, max_video_tokens=many, max_video_s=VIDEO_S + 1.0)
            grid = decode_video(inputs, config)[0].grid
            self.size = [side * config.patch_size for side in grid]
            self.call = lambda: _floats(decode_video(inputs, config)[1])

    def run(self, calls: int) -> dict[str, float]:
        """CPU and wall seconds of some calls."""
        return timed(self.call, calls)


class RepeatedCall:
    """A side as `measure.time_interleaved` wants it: mean seconds of a call, enough calls a sample."""

    def __init__(self, run: Callable[[int], Mapping[str, float]]):
        self.run, self.calls = run, 1

    def __call__(self) -> dict[str, float]:
        took = self.run(self.calls)
        return {"total": took["cpu_s"] / self.calls, "wall": took["wall_s"] / self.calls}

    def calibrate(self, seconds: float) -> None:
        """Set the calls of a sample, given how long one takes."""
        self.calls = int(np.clip(np.ceil(MIN_SAMPLE_S / max(seconds, 1e-9)), 1, 1000))


def start_peers(folder: Path, python: Path | None) -> tuple[WorkerProcess | None, dict[str, Any]]:
    """The peers' process and what it says of itself, or None and the reason."""
    try:
        child = start_peer(python or peer_python(more=PEER_PACKAGES), PEER_FILE, folder=folder)
        return child, child.ask("load", threads=1)
    except (WorkerError, OSError) as error:
        return None, {"skipped": str(error)}


def make_inputs(case: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that both sides read, and the peers' options."""
    kind = case.partition("-")[0]
    if kind == "video":
        path = folder / f"{case}.mp4"
        make_video(path, *VIDEOS[case])
        taken = range(0, VIDEO_S * VIDEO_FPS, VIDEO_FPS // 2)
        # its floor of whole blocks must not fall short by rounding
        return path, {"frames": list(taken), "max_pixels": VIDEO_SIZE[0] * VIDEO_SIZE[1] + 28 * 28}
    path = folder / f"{case}.npy"
    np.save(path, make_picture(*IMAGES[case]) if kind == "image" else make_sound())
    return path, {"max_pixels": IMAGE_SIZE[0] * IMAGE_SIZE[1] + 28 * 28}


def compare(case: str, child: WorkerProcess | None, reason: str, *, budget_s: float, rounds: int, folder: Path) -> dict:
    """Ours and the peers of a case in turn -> its part of the record."""
    torch.set_num_threads(1)
    kind = case.partition("-")[0]
    inputs, options = make_inputs(case, folder)
    ours = DataWorker(case, inputs)
    turns = {OURS: RepeatedCall(ours.run)}
    implementations: dict[str, Any] = {}
    for name in PEERS_OF[kind]:
        try:
            if child is None:
                raise WorkerError(reason)
            size = child.ask("prepare", name=name, inputs=str(inputs), options=options)["size"]
            if kind != "audio" and size != ours.size:
                raise WorkerError(f"gives {size} pixels where ours gives {ours.size}")
            turns[name] = RepeatedCall(lambda calls, name=name: child.ask("run", name=name, calls=calls))
        except WorkerError as error:
            implementations[name] = {"skipped": str(error)}
    taken = time_interleaved(turns, budget_s=budget_s, min_rounds=min(5, rounds), max_rounds=rounds)
    implementations |= {name: {"skipped": why} for name, why in taken.failures.items()}
    unit, amount = UNIT[kind]
    for name, summary in summarize(taken.times, reference=OURS).items():
        rates = [amount / phases["total"] for phases in taken.times[name]]
        implementations[name] = summary | {"rate": spread(rates)}
    return {"case": case, "size": ours.size, "unit": f"{unit} a core", "implementations": implementations}


def show(result: dict[str, Any]) -> str:
    """A case for the console."""
    if "skipped" in result:
        return f"\n{result['case']} left out: {result['skipped']}"
    if "implementations" not in result:
        return data_loader.show(result)
    rows, notes = [], []
    for name, implementation in result["implementations"].items():
        if "skipped" in implementation:
            notes.append(f"  {name} left out: {implementation['skipped']}")
            continue
        over = implementation.get("over", {}).get("total")
        rows.append(
            {
                "": name,
                result["unit"]: f"{implementation['rate']['median']:.1f}",
                "p20 .. p80": f"{implementation['rate']['p20']:.1f} .. {implementation['rate']['p80']:.1f}",
                "ms": f"{implementation['seconds']['total']['median'] * 1e3:.2f}",
                "ours is faster by": f"{over['median']:.2f}" if over else "",
            }
        )
    size = " x ".join(map(str, result["size"][::-1]))
    return "\n".join([f"\n{result['case']} ({size} comes out)", harness.table(rows), *notes])


def targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case against the faster of its peers."""
    found = []
    for result in cases:
        wanted = TARGETS[result["case"].partition("-")[0]]
        if "rate_over_repeated" in result:
            ratio = result["rate_over_repeated"]["median"]
            found += harness.target(result["case"], "rate over one batch repeated", ratio, "at least", wanted)
        overs = [
            side["over"]["total"]["median"] for side in result.get("implementations", {}).values() if "over" in side
        ]
        if overs:
            found += harness.target(result["case"], "speed over the fastest peer", min(overs), "at least", wanted)
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """Measured over target, by case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    names = [target["case"] for target in record["targets"]]
    axes.barh(names, [target["measured"] for target in record["targets"]], height=0.6, label="measured")
    for at, target in enumerate(record["targets"]):
        axes.plot([target["target"]] * 2, [at - 0.4, at + 0.4], color="black", label=None if at else "target")
    axes.invert_yaxis()
    axes.set_xlabel("Brine's speed over the fastest peer's")
    axes.legend(loc="lower right")
    figure.suptitle(f"{record['hardware']['processor']}, {record['hardware']['commit']}", fontsize=9)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    made = harness.parser(NAME, "Media to patches and loading, against transformers' processors and PyAV.")
    made.add_argument("--budget-s", type=float, default=12.0, help="seconds for the rounds of a case with peers")
    made.add_argument("--rounds", type=int, default=12, help="rounds of a case at most")
    made.add_argument("--steps", type=int, default=5, help="training steps of each half of a round")
    made.add_argument(
        "--peer-python", type=Path, default=None, help="interpreter for the peers; made with uv if absent"
    )
    options = made.parse_args(arguments)
    device = harness.prepare(options)
    names = harness.select([*IMAGES, "audio", *VIDEOS, "loader"], options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    try:
        record = harness.begin(NAME, options, device, TESTS)
    except gate.TestsFailedError as error:
        return harness.print_refusal(NAME, error)
    rounds, steps, budget_s = (2, 1, 0.5) if options.quick else (options.rounds, options.steps, options.budget_s)
    with tempfile.TemporaryDirectory() as folder:
        child, said = (None, {}) if names == ["loader"] else start_peers(Path(folder), options.peer_python)
        record["peers"] = said
        race = functools.partial(
            compare, child=child, reason=said.get("skipped", ""), budget_s=budget_s, rounds=rounds, folder=Path(folder)
        )

        def run(name: str, _: Any) -> dict[str, Any]:
            if name != "loader":
                return race(name)
            try:
                return data_loader.measure(
                    name, quick=options.quick, threads=options.threads, rounds=rounds, steps=steps
                )
            except (ValueError, SynthError) as error:
                return {"case": name, "skipped": str(error)}

        try:
            record["cases"] = harness.run_cases(names, run, show, minutes=options.minutes)
        finally:
            if child is not None:
                child.close()
    record["targets"] = targets(record["cases"])
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
