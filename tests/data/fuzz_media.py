"""Media files of every format, and what can be done to them: the raw material of the fuzz test.

    seeds(folder)                    name -> Seed, about 40 whole files of some kB, made on the spot
    real_seeds(manifest_folder)      a few small real files more, where they are at hand
    mutant(seeds, seed, case)        Mutant; a pure function of its arguments, so that any case can be had again

A mutant is a cut, flipped bits, a range of bytes that is zeroed, randomised, doubled or removed, a number near the
start set to an extreme, a chunk's size changed (with a PNG's checksum put right half the time, so that it is
believed), two files in one, or a whole file under another name. What must hold afterwards is in `fuzz_run`.
"""

import io
import json
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image as Pillow

from tests.data import media_formats as make

MAY_HIDE_A_CUT = {
    "cbr.mp3": "frames without a header that counts them: a cut between two frames leaves a whole file",
    "pipe.wav": "sizes left open by a writer that could not go back: the file ends where it ends",
    "pipe.mkv": "neither size nor duration, as from a pipe: a cut between two clusters leaves a whole file",
    "pipe.webm": "neither size nor duration, as from a browser's recorder",
    "fragments.mp4": "no duration: a cut between two fragments leaves a whole file",
}
"""Seeds whose format gives no sign of the end; everything else must notice that it was cut."""
OPERATIONS = ("cut", "flip", "zero", "noise", "double", "remove", "extreme", "chunk", "join", "rename", "relabel")
_WEIGHTS = np.array([4, 3, 2, 2, 1, 2, 3, 4, 1, 0.5, 0.5])
_TAGS = (
    *(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"iCCP", b"zTXt"),
    *(b"ftyp", b"moov", b"mdat", b"trak", b"mdia", b"stts", b"stsc", b"stsz", b"stco", b"ctts", b"elst", b"tkhd"),
    *(b"mvhd", b"mdhd", b"stsd", b"avc1", b"moof", b"trun", b"tfhd"),
    *(b"RIFF", b"fmt ", b"data", b"fact", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"EXIF", b"ds64"),
    *(b"OggS", b"fLaC", b"Xing", b"Info", b"ID3\x04", b"APIC"),
    *(b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\x15\x49\xa9\x66"),
)
_EXTREMES = (0, 1, 2**7 - 1, 2**7, 2**8 - 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


@dataclass(frozen=True)
class Seed:
    """A whole file; `sort` is image, audio, video, manifest, tar or table."""

    sort: str
    content: bytes


@dataclass(frozen=True)
class Mutant:
    """What came of one case."""

    case: int
    seed_name: str
    operation: str
    sort: str
    """What the file is given out to be."""
    suffix: str
    content: bytes


def mutant(seeds: dict[str, Seed], seed: int, case: int) -> Mutant:
    """Case number `case` of the series `seed`."""
    rng = np.random.default_rng([seed, case])
    names = sorted(seeds)
    name = names[rng.integers(len(names))]
    kin = [other for other in names if seeds[other].sort == seeds[name].sort]
    operation = str(rng.choice(OPERATIONS, p=_WEIGHTS / _WEIGHTS.sum()))
    sort, content, suffix = seeds[name].sort, seeds[name].content, Path(name).suffix
    if operation == "join":
        content += seeds[kin[rng.integers(len(kin))]].content
    elif operation == "rename":
        suffix = Path(kin[rng.integers(len(kin))]).suffix
    elif operation == "relabel":
        others = [other for other in ("image", "audio", "video") if other != sort]
        sort = sort if sort in ("manifest", "tar", "table") else others[rng.integers(len(others))]
        suffix = {"image": ".png", "audio": ".wav", "video": ".mp4"}.get(sort, suffix)
    else:
        content = _CHANGES[operation](content, rng)
    return Mutant(case, name, operation, sort, suffix, content)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    most = min(64, len(content) - 1) if rng.random() < 0.4 else len(content) - 1
    return content[: len(content) - int(rng.integers(1, most + 1))]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    reach = len(content) if rng.random() < 0.5 else min(512, len(content))
    for place in rng.integers(0, reach, rng.integers(1, 17)):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    length = 1 + int(rng.integers(max(1, len(content) // 8)))
    start = int(rng.integers(len(content)))
    return start, min(len(content), start + length)


def _zero(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def _noise(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + rng.bytes(stop - start) + content[stop:]


def _double(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:stop] + content[start:stop] * int(rng.integers(1, 5)) + content[stop:]


def _remove(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + content[stop:] or b"\0"


def _extreme(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four numbers among the first 256 bytes set to a value that breaks sums."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place, width = int(rng.integers(min(256, len(content)))), int(rng.choice([1, 2, 4, 8]))
        value = _EXTREMES[rng.integers(len(_EXTREMES))] % 256**width
        changed[place : place + width] = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")
    return bytes(changed[: len(content)])


def _chunk(content: bytes, rng: np.random.Generator) -> bytes:
    """The size, or a field inside, of a chunk, box or element; of any spot in a file without known ones."""
    places = sorted({place for tag in _TAGS for place in _occurrences(content, tag)})
    place = places[rng.integers(len(places))] if places else int(rng.integers(len(content)))
    field = place + (-4, 4, 4 + 4 * int(rng.integers(6)))[rng.integers(3)]
    field = min(max(0, field), len(content) - 1)
    width = int(rng.choice([1, 2, 4, 4, 4]))
    old = int.from_bytes(content[field : field + width], "big")
    values = (*_EXTREMES, old + 1, old - 1, old * 2, old // 2, len(content))
    value = int(values[rng.integers(len(values))]) % 256**width
    changed = bytearray(content)
    changed[field : field + width] = value.to_bytes(width, "big" if rng.random() < 0.7 else "little")
    changed = bytes(changed[: len(content)])
    return _png_checked(changed) if content.startswith(b"\x89PNG") and rng.random() < 0.7 else changed


def _occurrences(content: bytes, tag: bytes) -> list[int]:
    places, place = [], content.find(tag)
    while place >= 0 and len(places) < 20:
        places.append(place)
        place = content.find(tag, place + 1)
    return places


def _png_checked(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, as far as they can be walked."""
    changed, place = bytearray(content), 8
    while place + 12 <= len(content):
        (size,) = struct.unpack_from(">I", changed, place)
        end = place + 8 + size
        if end + 4 > len(content):
            break
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


_CHANGES = {
    "cut": _cut,
    "flip": _flip,
    "zero": _zero,
    "noise": _noise,
    "double": _double,
    "remove": _remove,
    "extreme": _extreme,
    "chunk": _chunk,
}


def seeds(folder: Path) -> dict[str, Seed]:
    """Whole files of every format, small enough that each decodes in milliseconds."""
    made = {name: Seed("image", content) for name, content in _pictures().items()}
    made |= {name: Seed("audio", content) for name, content in _sounds().items()}
    made |= {name: Seed("video", content) for name, content in _films(folder).items()}
    lines = _manifest_lines()
    for name, items in {"native.jsonl": lines, **_other_forms()}.items():
        made[name] = Seed("manifest", b"".join(json.dumps(item).encode() + b"\n" for item in items))
    made["array.json"] = Seed("manifest", json.dumps(lines, indent=1).encode())
    made["shard.tar"] = Seed("tar", _tar({name: made[name].content for name in ("rgb.png", "16-bit.wav", "cbr.mp3")}))
    media = [made[name].content for name in ("rgb.png", "palette.png", "turned.jpg")]
    made |= {name: Seed("table", content) for name, content in _tables(media).items()}
    return made


def _pictures() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (37, 50, 4), dtype=np.uint8)
    smooth = np.add.outer(np.arange(37), np.arange(50)).astype(np.uint8)
    color, clear, grey = Pillow.fromarray(noise[..., :3]), Pillow.fromarray(noise), Pillow.fromarray(smooth)
    exif = Pillow.Exif()
    exif[274] = 6
    flat = [Pillow.fromarray(np.full((20, 20), value, np.uint8)).convert("P") for value in (10, 90, 200)]
    forms = {
        "rgb.png": (color, {}),
        "alpha.png": (clear, {}),
        "palette.png": (color.quantize(16), {"transparency": 3}),
        "1-bit.png": (grey.convert("1"), {}),
        "animated.png": (clear, {"save_all": True, "append_images": [clear.rotate(180)]}),
        "turned.jpg": (grey.convert("RGB"), {"exif": exif}),
        "progressive.jpg": (color, {"progressive": True}),
        "cmyk.jpg": (grey.convert("CMYK"), {}),
        "lossy.webp": (color, {}),
        "lossless.webp": (clear, {"lossless": True}),
        "animated.webp": (clear, {"save_all": True, "append_images": [clear.rotate(180)]}),
        "animated.gif": (flat[0], {"save_all": True, "append_images": flat[1:], "transparency": 10}),
        "lzw.tiff": (color, {"compression": "tiff_lzw"}),
        "deflate.tiff": (clear, {"compression": "tiff_deflate"}),
        "pages.tiff": (grey, {"save_all": True, "append_images": [grey, grey]}),
        "palette.bmp": (color.quantize(16), {}),
    }
    out = {}
    for name, (picture, options) in forms.items():
        buffer = io.BytesIO()
        picture.save(buffer, Pillow.registered_extensions()[Path(name).suffix], **options)
        out[name] = buffer.getvalue()
    out["16-bit.png"] = make.png(50, 37, 16, 0, [row.tobytes() for row in (smooth.astype(">u2") * 500)])
    out["interlaced.png"] = make.interlaced_png(noise[..., :3])
    out["float.tiff"] = make.tiff(smooth[..., None].astype(np.float32), photometric=1, sample_format=3)
    return out


def _sounds() -> dict[str, bytes]:
    forms = {
        "8-bit.wav": ("WAV", "PCM_U8", 8000, 1),
        "16-bit.wav": ("WAV", "PCM_16", 16000, 2),
        "float.wav": ("WAV", "FLOAT", 22050, 1),
        "extensible.wav": ("WAVEX", "PCM_24", 16000, 6),
        "a-law.wav": ("WAV", "ALAW", 8000, 1),
        "16-bit.flac": ("FLAC", "PCM_16", 44100, 2),
        "vorbis.ogg": ("OGG", "VORBIS", 32000, 1),
        "opus.ogg": ("OGG", "OPUS", 48000, 2),
    }
    out = {}
    for name, (form, subtype, rate, channels) in forms.items():
        buffer = io.BytesIO()
        soundfile.write(buffer, make.tone(rate, 0.4, channels=channels), rate, format=form, subtype=subtype)
        out[name] = buffer.getvalue()
    pipe = bytearray(out["8-bit.wav"])
    for place in (4, pipe.index(b"data") + 4):
        pipe[place : place + 4] = b"\xff" * 4
    out["pipe.wav"] = bytes(pipe)
    out["vbr.mp3"] = make.mp3(0.4, vbr=True, cover=_pictures()["turned.jpg"])
    out["cbr.mp3"] = make.mp3_without_header(make.mp3(0.4))
    return out


def _films(folder: Path) -> dict[str, bytes]:
    steady, uneven = list(range(0, 1600, 100)), [0, 100, 130, 400, 900, 910, 1500, 1600]
    live = {"container_options": {"live": "1"}, "options": {"g": "4"}}
    paths = [
        make.film(folder / "b-frames.mp4", steady, b_frames=2, sound=(0.0, 1.0)),
        make.film(folder / "first.mp4", steady, container_options={"movflags": "faststart"}),
        make.film(
            folder / "fragments.mp4",
            steady,
            options={"g": "4"},
            container_options={"movflags": "frag_keyframe+empty_moov"},
        ),
        make.film(folder / "uneven.mkv", uneven, sound=(0.3, 1.0)),
        make.film(folder / "pipe.mkv", steady, **live),
        make.film(folder / "vp9.webm", steady, codec="libvpx-vp9", sound=(0.0, 1.0), sound_codec="libopus"),
        make.film(folder / "pipe.webm", steady, codec="libvpx", **live),
    ]
    out = {path.name: path.read_bytes() for path in paths}
    out["turned.mp4"] = make.turned(out["first.mp4"], 0, 1, -1, 0)
    out["edited.mp4"] = make.edited(make.film(folder / "x.mp4", steady, b_frames=2).read_bytes(), 500, 900)
    return out


def _manifest_lines() -> list[dict]:
    return [
        {
            "id": f"line-{number}",
            "kind": "page",
            "level": number % 3,
            "split": "train",
            "source": "made",
            "content": [
                {"type": "text", "text": "words é \U0001f41f " * number},
                {"type": "image", "image": f"media/{number}.png"},
                {"type": "audio", "audio": "shard.tar::a/b.wav", "role": "user"},
                {"type": "video", "video": "media/x.mp4", "sound": False},
                {"type": "text", "text": "and more", "loss_mask": False},
            ],
        }
        for number in range(12)
    ]


def _other_forms() -> dict[str, list[dict]]:
    """Manifests as other projects write them."""
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    turns = [{"role": "user", "content": [picture, {"type": "text", "text": "what?"}]},
             {"role": "assistant", "content": "a heron"}]  # fmt: skip
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a heron"}]
    return {
        "chat.jsonl": [{"id": f"{number}", "messages": turns} for number in range(6)],
        "llava.jsonl": [{"id": f"{number}", "image": "a.png", "conversations": said} for number in range(6)],
        "obelics.jsonl": [{"texts": ["one", None, "two"], "images": [None, "a.png", None]} for _ in range(6)],
        "captioned.jsonl": [
            {"id": f"{number}", "kind": "speech", "path": f"{number}.flac", "text": "so it is"} for number in range(6)
        ],
    }


def _tables(media: list[bytes]) -> dict[str, bytes]:
    """The same rows as Parquet, plain and compressed, and as Arrow; none where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return {}
    rows = [{"id": f"{place}", "image": {"bytes": content, "path": None}, "text": "what it is" * 9, "level": place}
            for place, content in enumerate(media)]  # fmt: skip
    table, out = pyarrow.Table.from_pylist(rows), {}
    for name, compression in (("plain.parquet", "none"), ("packed.parquet", "zstd")):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer, compression=compression, row_group_size=2)
        out[name] = buffer.getvalue()
    buffer = io.BytesIO()
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return out | {"rows.arrow": buffer.getvalue()}


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            for member, body in ((f"a/{name}", content), (f"a/{name.partition('.')[0]}.txt", b"what it is")):
                info = tarfile.TarInfo(member if name != "cbr.mp3" else f"é/{'long' * 40}/{member}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def real_seeds(folder: Path, *, each: int = 2, max_kib: int = 400) -> dict[str, Seed]:
    """The smallest few files of each kind below a folder of real media; none where it is absent."""
    sorts = {".png": "image", ".jpg": "image", ".flac": "audio", ".ogg": "audio", ".wav": "audio", ".mp4": "video"}
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in sorts and path.is_file() and 0 < path.stat().st_size <= max_kib * 1024:
            found.setdefault(path.suffix, []).append(path)
    chosen = [path for paths in found.values() for path in sorted(paths, key=lambda path: path.stat().st_size)[:each]]
    return {f"real-{path.name}": Seed(sorts[path.suffix], path.read_bytes()) for path in chosen}
