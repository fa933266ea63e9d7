"""What an underwriter wants from a dashboard: six facts, how answers are written, how they are read again, and scores.

    {"mileage": 528915, "unit": "km", "speed": 62, "time": "14:07", "temperature": 22, "gear": "D"}

None: the picture does not show it. unit is that of the mileage, km or mi; temperature is in degrees Celsius.
`parse` reads free text (the course's Chinese list, English, half of both) as well as JSON.
"""

import json
import math
import re
import unicodedata

from gauges import GEAR, NAME, known, rest_of_label, words_of

FIELDS = ("mileage", "unit", "speed", "time", "temperature", "gear")
LABELS = {"mileage": "总里程", "speed": "当前速度", "time": "当前时间", "temperature": "当前温度", "gear": "当前挡位"}
ABSENT = "未显示"
LONGEST = 20_000  # characters of a text that are read; an answer has some hundred

NOT_SHOWN = re.compile(
    r"未显示|没有显示|不显示|未标|未提供|没有|无法|不可见|看不清|看不到|不清楚|不明|未知|暂无|^\W*无\W*$"
    r"|not (?:shown|visible|displayed|available|readable|clear)|cannot|can't|unreadable|unknown|\bnone\b|\bnull\b|n/a",
    re.I,
)
# 528,915 or 528 915 or 528915; thousands only, so that "528,91" is no 52891. A decimal comma is one: 12345,6.
NUMBER = r"[-+]?(?:\d{1,3}(?:[, '’]\d{3})+(?!\d)|\d+)(?:\.\d+|,\d{1,2}(?![\d:]))?"


def _number(text, times=1):
    """The first number in a text as an int (rounded down, 万 counted) or None."""
    found = re.search(rf"({NUMBER})\s*(万)?(?:(\d)千(?!米)(\d{{3}}(?!\d))?|(\d{{4}})(?!\d))?", text)
    if not found:
        return None
    plain = re.sub(r"[ '’]|,(?=\d{3}(?!\d))", "", found[1]).replace(",", ".")
    value = float(plain) * (10_000 if found[2] else times)
    if found[2]:  # 12万3456, 5万2千
        value += int(found[3] or 0) * 1000 + int(found[4] or found[5] or 0)
    return math.floor(value + 1e-6) if math.isfinite(value) else None


def _mileage(text, label):
    text = text.replace("+", "")
    # 12.345 km in German: a total has one decimal at most, so three digits after a point are thousands.
    text = re.sub(
        r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?![\d.]|\s*万)", lambda found: found[0].replace(".", ""), text, count=1
    )
    thousands = re.match(
        rf"\D*{NUMBER}\s*(?:千(?=\s*(?:公里|英里|千米))|k(?=\s*(?:mi|km|公里|英里))|thousand|tsd)", text, re.I
    )
    if re.match(rf"\D*{NUMBER}\s*(?:小时|分钟|天|hours?\b|min)", text, re.I):  # has been driving for so long
        return None
    return _number(text, 10_000 if "万" in label else 1000 if thousands else 1)


def _speed(text, _label):
    return _number(text)


def _unit(text):
    found = re.search(
        r"(?P<mi>英[里哩]|哩|miles?\b|\bmi\b|\dmi\b)|(?P<km>公[里裡]|千米|k(?:ilo)?m(?:et(?:er|re)s?|s)?(?![a-z]))",
        text,
        re.I,
    )
    return found.lastgroup if found else None


def _time(text, _label):
    found = re.search(r"(\d{1,2})\s*[:点时h]\s*(\d{2})", text)
    if not found:
        return None
    hour, minute = int(found[1]), int(found[2])
    if re.search(r"下午|晚上|傍晚|\bp\.?m\b", text, re.I) and hour < 12:
        hour += 12
    elif re.search(r"上午|凌晨|早上|\ba\.?m\b", text, re.I) and hour == 12:
        hour = 0
    return f"{hour:02d}:{minute:02d}" if hour < 24 and minute < 60 else None


def _temperature(text, label):
    text = re.sub(r"(?:零下|\bminus\b)\s*", "-", text.replace("−", "-"), flags=re.I)
    outside = re.search(r"(?:outside|ambient|exterior|外)[^\d,;:+-]{0,12}(-?\d.*)", text, re.I)  # inside 24, outside 19
    text = outside[1] if outside else text
    value = _number(text)
    # 22°C (72°F): the first number's unit is the first.
    unit = re.search(
        r"(?P<f>°\s*F|华氏|fahrenheit|(?:\b|\d)F\b)|°\s*C|摄氏|celsius|(?:\b|\d)C\b", f"{text} {label}", re.I
    )
    if value is not None and unit and unit["f"]:
        value = round((value - 32) / 1.8)
    return value


MODES = (("S", r"运动|sport"), ("M", r"手动|manual"))


def _gear(text, _label):
    found = GEAR.search(text)
    if found:
        return found["letter"].upper() if found["letter"] else found.lastgroup
    return next((gear for gear, words in MODES if re.search(words, text, re.I)), None)


READERS = {"mileage": _mileage, "speed": _speed, "time": _time, "temperature": _temperature, "gear": _gear}


def parse(text):
    """The six facts of an answer, None for each that it does not give. Never raises: models write anything."""
    found = parse_json(text)
    return found if found is not None else _parse_text(text)


def parse_json(text):
    """The facts of a JSON answer, also inside a ``` fence; None where the text holds no JSON object."""
    for start in list(re.finditer(r"[\[{]", text))[:20]:
        try:
            given = json.JSONDecoder().raw_decode(text, start.start())[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(given, dict) or (isinstance(given, list) and any(isinstance(each, dict) for each in given)):
            # Other names for the same field, Chinese ones too, are read as in free text.
            lines = list(_lines(given))
            units = [value for label, value in lines if label == "unit"]
            facts = _parse_text(
                "\n".join([f"单位 {value}" for value in units[:1]] + [": ".join(line) for line in lines])
            )
            facts["unit"] = facts["unit"] or (_unit(units[0]) if units else None)
            return facts
    return None


# The keys of one reading: its value, its unit, its name.
RECORD = (
    ("value", "reading", "数值", "值", "读数"),
    ("unit", "units", "单位"),
    ("name", "label", "field", "项目", "名称"),
)


def _lines(given, above="", depth=0):
    """(label, value) of each value in a JSON answer that has a field's name in its label: the keys above it, and its own."""
    if isinstance(given, list) and depth < 10:
        for each in given:
            yield from _lines(each, above, depth + 1)
    elif isinstance(given, dict) and depth < 10:
        # speedLimit and speed_limit are two words.
        keys = {re.sub(r"(?<=[a-z])(?=[A-Z])|[_\s]+", " ", str(key)).strip(): value for key, value in given.items()}
        plain = {key.lower(): str(value) for key, value in keys.items() if isinstance(value, (str, int, float))}
        value, unit, name = (next((plain[key] for key in names if key in plain), "") for names in RECORD)
        if (above or name) and not {key.lower() for key in keys}.isdisjoint(RECORD[0]):
            if value:  # {"value": 5, "unit": "km"}, perhaps with the name beside it
                yield from _lines(f"{value} {unit}", name if NAME.search(name) else f"{above} {name}", depth + 1)
            return
        # What stands above three fields is a wrapper and says nothing; else it says whose they are: {"trip": {"mileage": 9}}.
        asked = {found.lastgroup for found in map(NAME.search, keys) if found} - {"other"}
        foreign = any(found.lastgroup == "other" for found in NAME.finditer(above))
        above = "" if len(asked) > 2 and not foreign else above
        for key, each in keys.items():
            yield from (
                [("unit", unit)] if key.lower() in RECORD[1] and unit else _lines(each, f"{above} {key}", depth + 1)
            )
    elif isinstance(given, (str, int, float)) and not isinstance(given, bool):
        label = " ".join(unicodedata.normalize("NFKC", above).split())
        if NAME.search(label):
            yield label, " ".join(str(given).split())


def _parse_text(text):
    # NFKC turns full-width digits, commas, colons and ℃ into the plain ones ("℃" becomes "°C").
    text = unicodedata.normalize("NFKC", text[:LONGEST])
    text = re.sub(r"[*_`#]+", " ", text).replace("|", ":")
    facts = dict.fromkeys(FIELDS)
    matches = list(NAME.finditer(text))
    before, previous = 0, None
    for i, match in enumerate(matches):
        field = match.lastgroup
        end = matches[i + 1].start() if i + 1 < len(matches) else len(text)
        length = (
            None if field == "other" or facts[field] is not None else rest_of_label(text, match, before, end, previous)
        )
        start, before, previous = before, match.end(), field
        if length is None:
            continue
        rest = text[match.end() + length : end]
        label = (
            re.match(r"[^\d,;。\n]*", text[start : match.start()][:-61:-1])[0][::-1]
            + text[match.start() : match.end() + length]
        )
        # A field's value stands in its line and its sentence; a full stop between digits is a decimal point.
        part = re.split(r"\n(?=\s*\S)|[。;]|\.(?=\s|$)", rest.lstrip(" \t:=\n"))[0]
        part = re.split(r"[,、]\s*[^\W\d][^\d:,、]{0,30}:", part)[0]  # the label of something else
        below = re.match(r"\W*([^\W\d][^\d:,]{0,30}):", part) if re.match(r"[ \t:=]*\n", rest) else None
        if NOT_SHOWN.search(part) or (below and not known(field, words_of(below[1], field), ())):
            continue
        facts[field] = READERS[field](part, label)
        if field == "mileage" and facts["mileage"] is not None:
            facts["unit"] = _unit(part) or _unit(label)
    if facts["mileage"] is not None and facts["unit"] is None:
        # "里程（公里）：528915" and a unit said elsewhere; a speed's "km/h" does not name the mileage's unit.
        facts["unit"] = _unit(re.sub(r"(?:km|mi|公里|英里|千米)\s*(?:/|每小时|每时|/小时)\S*", "", text))
    return facts


# -- writing


def as_course(facts):
    """The course's answer: a Chinese markdown list; a field that is not shown is said to be so."""
    unit = {"km": "公里", "mi": "英里", None: ""}[facts["unit"]]
    texts = {
        "mileage": lambda value: f"{value:,}{unit}",
        "speed": lambda value: f"{value}{unit}/小时",
        "time": str,
        "temperature": lambda value: f"{value}℃",
        "gear": lambda value: f"{value}挡",
    }
    lines = [
        f"- **{label}**：{ABSENT if facts[field] is None else texts[field](facts[field])}"
        for field, label in LABELS.items()
    ]
    return "图片中的仪表盘显示：\n\n" + "\n".join(lines)


def as_json(facts):
    return json.dumps({field: facts[field] for field in FIELDS}, ensure_ascii=False)


# -- scoring


def score(predicted, truth):
    """Counts and measures over documents. predicted, truth: lists of facts, equally long.

    A wrong value is a false positive and a false negative at once; `hallucinated` are the values given where the picture
    shows none, `missed` those not given where it shows one. Returns a dict; every rate is 0 to 1, None where undefined.
    """
    counts = {field: dict(tp=0, wrong=0, missed=0, hallucinated=0, absent=0) for field in FIELDS}
    for guess, gold in zip(predicted, truth, strict=True):
        for field, count in counts.items():
            if gold[field] is None:
                count["absent" if guess[field] is None else "hallucinated"] += 1
            elif guess[field] is None:
                count["missed"] += 1
            else:
                count["tp" if guess[field] == gold[field] else "wrong"] += 1

    def measures(count):
        fp, fn = count["wrong"] + count["hallucinated"], count["wrong"] + count["missed"]
        shown, absent = count["tp"] + fn, count["hallucinated"] + count["absent"]
        return {
            "exact": _share(count["tp"] + count["absent"], shown + absent),
            "precision": _share(count["tp"], count["tp"] + fp),
            "recall": _share(count["tp"], count["tp"] + fn),
            "f1": _share(2 * count["tp"], 2 * count["tp"] + fp + fn),
            "miss_rate": _share(count["missed"], shown),
            "hallucination_rate": _share(count["hallucinated"], absent),
        }

    fields = {field: measures(count) for field, count in counts.items()}
    total = {name: sum(count[name] for count in counts.values()) for name in counts["unit"]}
    f1 = [each["f1"] for each in fields.values() if each["f1"] is not None]
    pairs = [(guess["mileage"], gold["mileage"]) for guess, gold in zip(predicted, truth, strict=True)]
    pairs = [(guess, gold) for guess, gold in pairs if gold is not None]
    right = [digits_right(guess, gold) for guess, gold in pairs]
    return {
        "documents": len(truth),
        "document_exact": _share(sum(g == t for g, t in zip(predicted, truth, strict=True)), len(truth)),
        "parsed": _share(sum(any(value is not None for value in guess.values()) for guess in predicted), len(truth)),
        "micro": measures(total),
        "macro_f1": sum(f1) / len(f1) if f1 else None,
        "mileage_digits": _share(sum(right), sum(len(str(gold)) for _, gold in pairs)),
        "mileage_one_digit_off": _share(
            sum(
                count == len(str(gold)) - 1 and guess != gold for count, (guess, gold) in zip(right, pairs, strict=True)
            ),
            len(pairs),
        ),
        "mileage_within_1": _share(
            sum(guess is not None and abs(guess - gold) <= 1 for guess, gold in pairs), len(pairs)
        ),
        "fields": fields,
    }


def digits_right(guess, gold):
    """How many digits of the true mileage stand in the same place of the answer, from the right: 0 where none is given."""
    if guess is None:
        return 0
    return sum(a == b for a, b in zip(reversed(str(guess)), reversed(str(gold)), strict=False))


def _share(part, whole):
    return part / whole if whole else None
