"""Whether a row is about a stretch of its sound or film, so that to read all of it would teach the wrong thing.

    {"video": "v.mp4", "start": 1.5, "end": "00:00:04"}               names for a start and an end
    {"video": "v.mp4", "timestamp": "['0:00:01.0', '0:00:02.0']"}     names for both in one

Such rows are set aside, with the command that cuts. Values may be numbers, texts ("1.5s", "00:01:02.5", "0:01-0:02"),
lists, objects, and lists or objects written as text, as tables have them. A start of 0, and an end that is as late as
the length given beside it, leave nothing out. A sound or film in a table's cell or in a tar was cut before it was
packed there, so that the fields tell where from, and are noted. So it is with the files of the house form.

A date, the seconds since 1970 or a single time is no stretch. A single time or frame that does not tell what it is for
is noted by its name, and so is a list of other than two. So is what may as well be something else under its name:

    {"answer_start": 23}                       a place in the text, where no end, fraction or unit says otherwise
    {"clip": "003-017"}                        numbers of clips, scenes, shots or chunks
    {"range": [0, 5]}, {"shot": [640, 480]}    a scale or a size in whole numbers
    {"period": [1990, 2000]}, {"time": "10:00-11:00"}, {"timestamp": "12-2020"}    years, hours of a day, a month
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence

from data.document import Audio, DocumentError, Part, Video
from data.formats.fields import FIELDS, path_of

_ABOUT = (
    r"(?:clip|video|audio|segment|seg|scene|shot|event|action|t|time|chunk|frame|sample|trim|cut|crop|speech|utt|"
    r"utterance|sentence|turn|caption|subtitle|span|range|interval|window|source|src|orig|original|youtube|yt|film|"
    r"sound|wav|media|relative|rel|absolute|abs|temporal|relevant|target|gt|moment|answer)"
)
_UNIT = (
    r"(?:time|timestamp|timecode|ts|secs?|seconds?|s|ms|msecs?|milliseconds?|ns|us|frames?|frameid|frameno|idx|index|"
    r"samples?|pos|position|point|offset|pts|at|in)"
)
_FROM = re.compile(
    rf"{_ABOUT}*?(?:starts?|begins?|beginning|onsets?){_UNIT}*|{_ABOUT}?offset{_UNIT}?|from{_UNIT}+|tmin|inpoint|ss"
)
_UNTIL = re.compile(rf"{_ABOUT}*?(?:ends?|stops?|finish|ending){_UNIT}*|(?:to|until){_UNIT}+|tmax|outpoint")
_LENGTH = re.compile(
    r"(?:clip|video|audio|sound|film|total|media)?(?:durations?|dur|length|len)(?:secs?|seconds?|s|ms)?|"
    r"(?:num|n|nb|total)(?:video|audio)?(?:frames|samples|seconds)|frames?(?:count|num|total)"
)
_SPAN = re.compile(
    rf"{_ABOUT}*?(?:segment|seg|span|timespan|timestamp|timecode|ts|interval|clip|time|range|moment|period|excerpt|"
    rf"stretch|startend|startstop|beginend|fromto|scene|shot|chunk)(?:e?s)?{_UNIT}{{0,2}}|"
    rf"{_ABOUT}+?(?:windows?|bounds|boundary|boundaries|limits)"
)
_FRAMES = re.compile(r"(?:video|key)?frames?(?:idx|index|indices|ids?|no|num|number|numbers)?s?")
_PLACE = re.compile(
    rf"{_ABOUT}*?(?:answer|target|sentence|span)(?:(?:starts?|begins?|beginning)(?:idx|index|pos|position|point|offset|at|"
    rf"in)*|offsets?)"
)
"""What is counted in characters or words as often as in seconds."""
_NUMBERED = re.compile(r"(?:video|audio|film|source|src|orig|original|sample|media)?(?:clip|scene|shot|chunk)s?")
_SCALE = re.compile(
    r"(?:scene|shot|sample|sentence|turn|span|source|src|orig|original|target|answer)?(?:range|shot|period)s?"
)
_CALENDAR = re.compile(r"times?|timestamps?|(?:time)?(?:period|range)s?|time(?:span|interval|window)s?")
_CLOCK = re.compile(r"(\d\d?):([0-5]\d)")
_MONTH = re.compile(r"0?[1-9]|1[0-2]")
_YEAR = re.compile(r"(?:1[89]|20)\d\ds?")
_TIME = r"(?:\d{1,4}:){0,3}\d{1,12}(?:[.,]\d{1,9})?(?:\s?(?:s|secs?|seconds?|ms|frames?))?"
_PLAIN = r"\d{1,12}(?:\.\d{1,9})?"
_ONE = re.compile(rf"\s*({_TIME})\s*")
_SPOKEN = re.compile(r"\s*(?:(\d{1,3})\s?h)?\s?(?:(\d{1,3})\s?m(?:in)?)?\s?(?:(\d{1,5}(?:\.\d{1,9})?)\s?s)?\s*")
# a dash may be a longer one
_BETWEEN = "(?:\\s*(?:-+>?|\u2013|\u2014|~|;|\\.\\.+|to|until)\\s*|\\s+)"
_TWO = re.compile(rf"\s*({_PLAIN})\s*[,;]\s*({_PLAIN})\s*|\s*({_TIME}){_BETWEEN}({_TIME})\s*")
_LIST = re.compile(r"\s*[\[({][\w\s\[\](){}.,:'\"-]*[\])}]\s*")
_DATE = re.compile(r"\s*(?:(?:0\d|1[0-2])-(?:[0-2]\d|3[01])|(?:[0-2]\d|3[01])-(?:0\d|1[0-2]))\s*")
_LATE = 1e9
"""Seconds since 1970 from here on, which is no time in a sound or film."""


def check_whole(fields: dict, parts: Sequence[Part], notes: Counter) -> set[str]:
    """The fields that were told of, after a look at a document's own and at those of its media.

    DocumentError where they name a part of its sound or film, of which the whole would be read.
    """
    paths = [part.path for part in parts if isinstance(part, Audio | Video)]
    if not paths:
        return set()
    told = check_stretch(fields, paths, notes)
    for key, value in fields.items():
        if key not in told and _is_unsure(_plain(key), value):
            notes[f"note: field {key[:40]!r} was not read"] += 1
            told.add(key)
    for key in FIELDS.keys() & fields.keys():
        for entry in fields[key][:100] if isinstance(fields[key], list) else [fields[key]]:
            if isinstance(entry, dict):
                check_stretch(entry, paths, notes)
    return told


def check_stretch(fields: dict, paths: Sequence[str], notes: Counter) -> set[str]:
    """The fields beside sounds or films that say where they were cut from, each noted.

    paths: those of the sounds and films. Raises DocumentError where one is a file, which is not cut yet.
    """
    found = _found(fields)
    if found and all("::" in path for path in paths):
        for key in found:
            notes[f"note: field {key[:40]!r} was read as the place that an embedded sound or film was cut from"] += 1
    elif found:
        names = " and ".join(repr(key[:40]) for key in found[:3])
        says = f"field {names} says" if len(found) == 1 else f"fields {names} say"
        raise DocumentError(
            f"{says} that a stretch is meant, where all of the sound or film would be read: cut it out "
            "(`ffmpeg -ss START -t SECONDS -i FILE PART`) and give that file, or take that out where it is cut"
        )
    return set(found)


def check_part(part: dict, notes: Counter, *, listed: Sequence[str] = ()) -> set[str]:
    """The same for a content part; listed: the sounds and films that one without a path may stand for."""
    kind = str(part.get("type")).removeprefix("input_").removesuffix("_url")
    if kind not in ("audio", "video"):
        return set()
    named = [part[key] for key in (kind, f"{kind}_url", "path", "url", "file", "source") if part.get(key)]
    paths = [path_of(each) for each in named] or list(listed) or [""]
    for each in named:
        if isinstance(each, dict):
            check_stretch(each, paths, notes)
    return check_stretch(part, paths, notes)


def _found(fields: dict) -> list[str]:
    if not any(_sort(_plain(key)) for key in fields):
        return []
    lengths = {length for key, value in fields.items() if _is_length(key) and (length := _number(value)) is not None}
    # the last of so many frames
    lengths |= {length - 1 for length in lengths if length == int(length) and length > 1}
    found = [key for key, value in fields.items() if _is_stretch(_plain(key), _read(value), lengths)]
    if not found:
        return []
    has_end = any(_sort(_plain(key)) == "until" and _read(value) is not None for key, value in fields.items())
    return [
        key
        for key in found
        if (has_end and _sort(_plain(key)) == "from") or not _is_something_else(_plain(key), fields[key])
    ]


def _is_length(key: str) -> bool:
    return _LENGTH.fullmatch(_plain(key)) is not None


def _is_stretch(name: str, value, lengths: set[float]) -> bool:
    sort = _sort(name)
    if not sort or value is None:
        return False
    if isinstance(value, dict):
        inside = {str(key): entry for key, entry in value.items()}
        return len(value) < 20 and bool(
            _found(inside | {f"duration{n}"[:8]: length for n, length in enumerate(lengths)})
        )
    if sort == "span":
        return _is_span(value, lengths)
    times = _times(value) if isinstance(value, list) else [value]
    # of many that begin with the first moment one cannot know
    if not times or (len(times) > 1 and (sort == "until" or times[0] == 0)):
        return False
    time = times[0]
    return 0 < time < _LATE and not (sort == "until" and time in lengths)


def _is_span(value, lengths: set[float]) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(entry, list) for entry in value):
        return any(_is_span(entry, lengths) for entry in value[:1000])
    times = _times(value)
    return len(times) == 2 and 0 < times[1] < _LATE and not (times[0] == 0 and times[1] in lengths)


def _is_something_else(name: str, value) -> bool:
    """Whether what could be a stretch may as well be a place in a text, numbers of clips, a scale, years or hours."""
    doubts = _doubts(name)
    if not doubts:
        return False
    if isinstance(value, str) and len(value) <= 10_000:
        if two := _TWO.fullmatch(value):
            value = [piece for piece in two.groups() if piece is not None]
        elif _LIST.fullmatch(value):
            value = _written(value)
    if isinstance(value, dict):
        value = [entry for key, entry in value.items() if _sort(_plain(str(key))) in ("from", "until")]
        return "date" in doubts and len(value) == 2 and _is_date(name, value)
    entries = value[:1000] if isinstance(value, list) else [value]
    if entries and all(isinstance(entry, list) for entry in entries):
        return all(_is_something_else(name, entry) for entry in entries)
    if not entries or not all(isinstance(entry, str | int | float) for entry in entries):
        return False
    is_whole = all(re.fullmatch(r"\s*\d{1,12}(?:\.0)?\s*", str(entry)) for entry in entries)
    if "place" in doubts or len(entries) != 2:
        # of a single one `answer_start_s` is in seconds
        return is_whole and "place" in doubts and (isinstance(value, list) or not name.endswith("s"))
    if is_whole and "numbers" in doubts and (isinstance(entries[0], str) or float(entries[1]) <= float(entries[0])):
        return True
    return (is_whole and "scale" in doubts) or ("date" in doubts and _is_date(name, entries))


def _is_date(name: str, two: list) -> bool:
    """Whether two values are years, a month of a year or the hours of a day."""
    first, last = (str(entry).strip().removesuffix(".0") for entry in two)
    if _YEAR.fullmatch(last) and (_YEAR.fullmatch(first) or (isinstance(two[0], str) and _MONTH.fullmatch(first))):
        return True
    # what is named a time stamp is of the film
    begin, end = _CLOCK.fullmatch(first), _CLOCK.fullmatch(last)
    if not begin or not end or name.startswith("timestamp"):
        return False
    # minutes and seconds look the same: a late hour or whole ones tell
    hours, rest = (int(begin[1]), int(end[1])), {begin[2], end[2]}
    return max(hours) <= 24 and (hours[0] >= 6 or (hours[0] > 0 and rest <= {"00", "30"}))


@functools.lru_cache(maxsize=4096)
def _doubts(name: str) -> frozenset[str]:
    """What else a value may be by the name of its field."""
    sorts = {"place": _PLACE, "numbers": _NUMBERED, "scale": _SCALE, "date": _CALENDAR}
    return frozenset(sort for sort, names in sorts.items() if names.fullmatch(name))


def _is_unsure(name: str, value) -> bool:
    """Whether a value is a time, a frame or several, and its name does not tell what for."""
    if _sort(name) != "span" and not _FRAMES.fullmatch(name) and not _is_something_else(name, value):
        return False
    value = _read(value)
    times = _times(value) if isinstance(value, list) else [value] if isinstance(value, int | float) else []
    return bool(times) and 0 < max(times) < _LATE


def _times(value: list) -> list[float]:
    """The times of a list of nothing else; else empty."""
    times = [_number(entry) for entry in value[:1000]]
    return [] if None in times else times


@functools.lru_cache(maxsize=4096)
def _sort(name: str) -> str:
    """Whether a field is one for the start of a stretch, its end or both ("span"), by its name; "" for others."""
    if _FROM.fullmatch(name):
        return "from"
    if _UNTIL.fullmatch(name):
        return "until"
    return "span" if _SPAN.fullmatch(name) else ""


def _read(value):
    """A number, a list or an object, also of a text that is one; None for anything else."""
    if not isinstance(value, str):
        return value if isinstance(value, list | dict) else _number(value)
    if len(value) > 10_000:
        return None
    number = _number(value)
    if number is not None:
        return number
    if (two := _TWO.fullmatch(value)) and not _DATE.fullmatch(value):
        begin, end = (piece for piece in two.groups() if piece is not None)
        first, last = _number(begin), _number(end)
        # the years of a period
        years = all(re.fullmatch(r"(?:1\d|20)\d\d", piece) for piece in (begin, end))
        is_date = any(re.fullmatch(r"(?:19|20)\d{6}", piece) for piece in (begin, end))
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
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        # neither NaN nor what is too large to be one
        return value if abs(value) < 1e15 else None
    if not isinstance(value, str) or len(value) > 40:
        return None
    if _ONE.fullmatch(value):
        seconds = 0.0
        for piece in re.sub(r"[a-z\s]+", "", value).replace(",", ".").split(":"):
            seconds = 60 * seconds + float(piece)
        return seconds
    if (spoken := _SPOKEN.fullmatch(value)) and any(spoken.groups()):
        hours, minutes, seconds = (float(piece or 0) for piece in spoken.groups())
        return 3600 * hours + 60 * minutes + seconds
    return None


@functools.lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold() if len(name) < 40 else ""
