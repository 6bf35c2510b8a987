"""Rows about a time span of their audio or video: to read the whole file would teach the wrong thing.

    {"video": "v.mp4", "start": 1.5, "end": "00:00:04"}               a start and an end
    {"video": "v.mp4", "timestamp": "['0:00:01.0', '0:00:02.0']"}     both in one field

Such rows are refused, with the command that cuts; spans of media in a table or tar, which were cut before, are noted.
A start of 0, an end at the length, dates, single times, text offsets and numbers of clips are no spans.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence

from brine.data.document import Audio, DocumentError, Part, Video
from brine.data.formats.lines.fields import FIELDS, path_of
from brine.data.formats.lines.provenance import plain_name

_ABOUT = (
    r"(?:clip|video|audio|segment|seg|scene|shot|event|action|t|time|chunk|frame|sample|trim|cut|crop|speech|utt|"
    r"utterance|sentence|turn|caption|subtitle|span|range|interval|window|source|src|orig|original|youtube|yt|film|"
    r"sound|wav|media|relative|rel|absolute|abs|temporal|relevant|target|gt|moment|answer)"
)
_UNIT = (
    r"(?:time|timestamp|timecode|ts|secs?|seconds?|s|ms|msecs?|milliseconds?|ns|us|frames?|frameid|frameno|idx|index|"
    r"samples?|pos|position|point|offset|pts|at|in)"
)
_LENGTH = re.compile(
    r"(?:clip|video|audio|sound|film|total|media)?(?:durations?|dur|length|len)(?:secs?|seconds?|s|ms)?|"
    r"(?:num|n|nb|total)(?:video|audio)?(?:frames|samples|seconds)|frames?(?:count|num|total)"
)
_SORTS = {
    "from": re.compile(
        rf"{_ABOUT}*?(?:starts?|begins?|beginning|onsets?){_UNIT}*|{_ABOUT}?offset{_UNIT}?|from{_UNIT}+|tmin|inpoint|ss"
    ),
    "until": re.compile(rf"{_ABOUT}*?(?:ends?|stops?|finish|ending){_UNIT}*|(?:to|until){_UNIT}+|tmax|outpoint"),
    "span": re.compile(
        rf"{_ABOUT}*?(?:segment|seg|span|timespan|timestamp|timecode|ts|interval|clip|time|range|moment|period|excerpt|"
        rf"stretch|startend|startstop|beginend|fromto|scene|shot|chunk)(?:e?s)?{_UNIT}{{0,2}}|"
        rf"{_ABOUT}+?(?:windows?|bounds|boundary|boundaries|limits)"
    ),
}
_FRAMES = re.compile(r"(?:video|key)?frames?(?:idx|index|indices|ids?|no|num|number|numbers)?s?")
_OTHER_MEANINGS = {
    "offset": re.compile(
        rf"{_ABOUT}*?(?:answer|target|sentence|span)(?:(?:starts?|begins?|beginning)(?:idx|index|pos|position|point|"
        rf"offset|at|in)*|offsets?)"
    ),
    "numbers": re.compile(r"(?:video|audio|film|source|src|orig|original|sample|media)?(?:clip|scene|shot|chunk)s?"),
    "scale": re.compile(
        r"(?:scene|shot|sample|sentence|turn|span|source|src|orig|original|target|answer)?(?:range|shot|period)s?"
    ),
    "date": re.compile(r"times?|timestamps?|(?:time)?(?:period|range)s?|time(?:span|interval|window)s?"),
}
_CLOCK = re.compile(r"(\d\d?):([0-5]\d)")
_MONTH = re.compile(r"0?[1-9]|1[0-2]")
_YEAR = re.compile(r"(?:1[89]|20)\d\ds?")
_TIME = r"(?:\d{1,4}:){0,3}\d{1,12}(?:[.,]\d{1,9})?(?:\s?(?:s|secs?|seconds?|ms|frames?))?"
_PLAIN = r"\d{1,12}(?:\.\d{1,9})?"
_ONE = re.compile(rf"\s*({_TIME})\s*")
_SPOKEN = re.compile(r"\s*(?:(\d{1,3})\s?h)?\s?(?:(\d{1,3})\s?m(?:in)?)?\s?(?:(\d{1,5}(?:\.\d{1,9})?)\s?s)?\s*")
_BETWEEN = "(?:\\s*(?:-+>?|\u2013|\u2014|~|;|\\.\\.+|to|until)\\s*|\\s+)"
_TWO = re.compile(rf"\s*({_PLAIN})\s*[,;]\s*({_PLAIN})\s*|\s*({_TIME}){_BETWEEN}({_TIME})\s*")
_LIST = re.compile(r"\s*[\[({][\w\s\[\](){}.,:'\"-]*[\])}]\s*")
_DATE = re.compile(r"\s*(?:(?:0\d|1[0-2])-(?:[0-2]\d|3[01])|(?:[0-2]\d|3[01])-(?:0\d|1[0-2]))\s*")
_DATES = (re.compile(r"(?:1\d|20)\d\d"), re.compile(r"(?:19|20)\d{6}"))
# seconds since 1970 from here on
_LATE = 1e9


def check_not_clipped(fields: dict, parts: Sequence[Part], notes: Counter) -> set[str]:
    """The fields about time spans that were noted, of a document and of its media. DocumentError where one is meant."""
    paths = [part.path for part in parts if isinstance(part, Audio | Video)]
    if not paths:
        return set()
    noted = check_time_span(fields, paths, notes)
    for key in [key for key in fields if key not in noted and _is_unsure(plain_name(key), fields[key])]:
        notes[f"note: field {key[:40]!r} was not read"] += 1
        noted.add(key)
    for key in FIELDS.keys() & fields.keys():
        for each in fields[key][:100] if isinstance(fields[key], list) else [fields[key]]:
            if isinstance(each, dict):
                check_time_span(each, paths, notes)
    return noted


def check_time_span(fields: dict, paths: Sequence[str], notes: Counter) -> set[str]:
    """Note fields that select a span of audio or video, all of which is embedded. DocumentError for one of a file."""
    found = _span_keys(fields)
    if found and all("::" in path for path in paths):
        for key in found:
            notes[f"note: field {key[:40]!r} was read as the time span that embedded audio or video was cut from"] += 1
    elif found:
        names = " and ".join(repr(key[:40]) for key in found[:3])
        raise DocumentError(
            f"{f'field {names} says' if len(found) == 1 else f'fields {names} say'} that a time span is meant, where "
            "all of the audio or video would be read: cut it out (`ffmpeg -ss START -t SECONDS -i FILE PART`) and give "
            "that file, or remove the field where it is cut"
        )
    return set(found)


def check_part_time_span(part: dict, notes: Counter, *, listed: Sequence[str] = ()) -> set[str]:
    """The same for a content part; listed: the audio and video files that one without a path may stand for."""
    kind = str(part.get("type")).removeprefix("input_").removesuffix("_url")
    if kind not in ("audio", "video"):
        return set()
    named = [part[key] for key in (kind, f"{kind}_url", "path", "url", "file", "source") if part.get(key)]
    paths = [path_of(each) for each in named] or list(listed) or [""]
    for each in named:
        if isinstance(each, dict):
            check_time_span(each, paths, notes)
    return check_time_span(part, paths, notes)


def _span_keys(fields: dict) -> list[str]:
    sorts = {key: _sort(plain_name(key)) for key in fields}
    if not any(sorts.values()):
        return []
    lengths = {_number(value) for key, value in fields.items() if _LENGTH.fullmatch(plain_name(key))} - {None}
    # the last of so many frames
    lengths |= {length - 1 for length in lengths if length == int(length) and length > 1}
    has_end = any(sort == "until" and _read(fields[key]) is not None for key, sort in sorts.items())
    return [
        key
        for key, value in fields.items()
        if _is_time_span(sorts[key], _read(value), lengths)
        and ((has_end and sorts[key] == "from") or not _is_something_else(plain_name(key), value))
    ]


def _is_time_span(sort: str, value, lengths: set[float]) -> bool:
    if not sort or value is None:
        return False
    if isinstance(value, dict):
        inside = {str(key): each for key, each in value.items()}
        return len(value) < 20 and bool(_span_keys(inside | dict(zip(("dur", "len"), lengths, strict=False))))
    if sort == "span":
        return isinstance(value, list) and _is_span(value, lengths)
    times = _times(value)
    # of many that begin with the first moment one cannot know
    if not times or (len(times) > 1 and (sort == "until" or times[0] == 0)):
        return False
    return 0 < times[0] < _LATE and not (sort == "until" and times[0] in lengths)


def _is_span(value: list, lengths: set[float]) -> bool:
    if value and all(isinstance(each, list) for each in value):
        return any(_is_span(each, lengths) for each in value[:1000])
    times = _times(value)
    return len(times) == 2 and 0 < times[1] < _LATE and not (times[0] == 0 and times[1] in lengths)


def _is_something_else(name: str, value) -> bool:
    """Whether a possible span may as well be an offset in a text, numbers of clips, a scale, years or hours."""
    meanings = _other_meanings(name)
    if not meanings:
        return False
    if isinstance(value, str) and len(value) <= 10_000:
        two = _TWO.fullmatch(value)
        value = list(filter(None, two.groups())) if two else _written(value) if _LIST.fullmatch(value) else value
    if isinstance(value, dict):
        value = [each for key, each in value.items() if _sort(plain_name(str(key))) in ("from", "until")]
        return "date" in meanings and len(value) == 2 and _is_date(name, value)
    values = value[:1000] if isinstance(value, list) else [value]
    if values and all(isinstance(each, list) for each in values):
        return all(_is_something_else(name, each) for each in values)
    if not values or not all(isinstance(each, str | int | float) for each in values):
        return False
    is_whole = all(re.fullmatch(r"\s*\d{1,12}(?:\.0)?\s*", str(each)) for each in values)
    if "offset" in meanings or len(values) != 2:
        # of a single one `answer_start_s` is in seconds
        return is_whole and "offset" in meanings and (isinstance(value, list) or not name.endswith("s"))
    if is_whole and "scale" in meanings:
        return True
    if is_whole and "numbers" in meanings and (isinstance(values[0], str) or float(values[1]) <= float(values[0])):
        return True
    return "date" in meanings and _is_date(name, values)


def _is_date(name: str, two: list) -> bool:
    first, last = (str(each).strip().removesuffix(".0") for each in two)
    if _YEAR.fullmatch(last) and (_YEAR.fullmatch(first) or (isinstance(two[0], str) and _MONTH.fullmatch(first))):
        return True
    # what is named a time stamp is of the video
    begin, end = _CLOCK.fullmatch(first), _CLOCK.fullmatch(last)
    if not begin or not end or name.startswith("timestamp"):
        return False
    # minutes and seconds look the same: a late hour or whole ones tell
    hours, rest = (int(begin[1]), int(end[1])), {begin[2], end[2]}
    return max(hours) <= 24 and (hours[0] >= 6 or (hours[0] > 0 and rest <= {"00", "30"}))


@functools.lru_cache(maxsize=4096)
def _other_meanings(name: str) -> frozenset[str]:
    return frozenset(meaning for meaning, names in _OTHER_MEANINGS.items() if names.fullmatch(name))


@functools.lru_cache(maxsize=4096)
def _sort(name: str) -> str:
    return next((sort for sort, names in _SORTS.items() if names.fullmatch(name)), "")


def _is_unsure(name: str, value) -> bool:
    """Whether a value is a time, a frame or several, and its name does not tell what for."""
    if _sort(name) != "span" and not _FRAMES.fullmatch(name) and not _is_something_else(name, value):
        return False
    value = _read(value)
    times = [] if value is None or isinstance(value, dict) else _times(value)
    return bool(times) and 0 < max(times) < _LATE


def _times(value) -> list[float]:
    times = [_number(each) for each in value[:1000]] if isinstance(value, list) else [value]
    return [] if None in times else times


def _read(value):
    """A number, a list or an object, also of a text that is one; None for anything else."""
    if not isinstance(value, str):
        return value if isinstance(value, list | dict) else _number(value)
    if len(value) > 10_000 or (number := _number(value)) is not None:
        return None if len(value) > 10_000 else number
    if (two := _TWO.fullmatch(value)) and not _DATE.fullmatch(value):
        texts = list(filter(None, two.groups()))
        first, last = map(_number, texts)
        years, is_date = all(map(_DATES[0].fullmatch, texts)), any(map(_DATES[1].fullmatch, texts))
        return [first, last] if first < last and not years and not is_date else None
    return _written(value) if _LIST.fullmatch(value) else None


def _written(text: str):
    """The list or object that a table holds as text, in the words of Python or of JSON; None for none."""
    words = text.replace("'", '"').replace("(", "[").replace(")", "]").replace("None", "null")
    # clocks without quotes
    words = re.sub(r"(?<=[\[,\s])\d+(?::\d+)+(?:\.\d+)?(?=\s*[\],])", lambda match: f'"{match[0]}"', words)
    try:
        found = json.loads(re.sub(r",\s*\]", "]", words))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list | dict) else None


def _number(value) -> float | None:
    """Seconds in a number, or in a text such as "12.5", "1.5 s", "1m2s" or "00:01:02.5"; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        # neither NaN nor what is too large to be one
        return value if abs(value) < 1e15 else None
    if not isinstance(value, str) or len(value) > 40:
        return None
    if _ONE.fullmatch(value):
        clock = re.sub(r"[a-z\s]+", "", value).replace(",", ".").split(":")
        return functools.reduce(lambda seconds, each: 60 * seconds + float(each), clock, 0.0)
    spoken = _SPOKEN.fullmatch(value)
    if spoken is None or not any(spoken.groups()):
        return None
    hours, minutes, seconds = (float(each or 0) for each in spoken.groups())
    return 3600 * hours + 60 * minutes + seconds
