"""What an underwriter wants from a dashboard: six facts, how answers are written, how they are read again, and scores.

    {"mileage": 528915, "unit": "km", "speed": 62, "time": "14:07", "temperature": 22, "gear": "D"}

None: the picture does not show it. unit is that of the mileage, km or mi; temperature is in degrees Celsius.
`parse` reads free text (the course's Chinese list, English, half of both) as well as JSON.
"""

import json
import math
import re
import unicodedata

FIELDS = ("mileage", "unit", "speed", "time", "temperature", "gear")
LABELS = {"mileage": "总里程", "speed": "当前速度", "time": "当前时间", "temperature": "当前温度", "gear": "当前挡位"}
ABSENT = "未显示"

# How models name a field. A name ends the field before it, so the longer names stand first.
NAMES = {
    "mileage": r"总里程数?|行驶里程数?|里程表读数|里程表|里程数|里程|(?:共|已经?)行驶了?|odometer reading|odometer|total mileage|mileage|\bodo\b",
    "speed": r"当前速度|当前车速|行驶速度|时速|车速|速度|current speed|speedometer|speed",
    "time": r"当前时间|显示时间|时间|时钟|current time|time|clock",
    "temperature": r"当前温度|外部温度|室外温度|车外温度|环境温度|温度|气温|outside temperature|ambient temperature|temperature|\btemp\b",
    "gear": r"当前[挡档]位|[挡档]位|变速箱|gear position|current gear|transmission|gear",
    # Not asked for, but models add them; without these their numbers would count as the field before.
    None: r"小计里程|单次里程|短途里程|续航里程|剩余里程|保养里程|平均速度|平均车速|油量|燃油|油耗|转速|电量|日期|trip|range|fuel|rpm|battery|date|average speed",
}
NAME = re.compile("|".join(f"(?P<{field or 'other'}>{names})" for field, names in reversed(NAMES.items())), re.I)
NOT_SHOWN = re.compile(
    r"未显示|没有显示|不显示|未标|未提供|没有|无法|不可见|看不清|看不到|不清楚|不明|未知|暂无|^\W*无\W*$"
    r"|not (?:shown|visible|displayed|available|readable|clear)|cannot|can't|unreadable|unknown|\bnone\b|\bnull\b|n/a",
    re.I,
)
# 528,915 or 528 915 or 528915; thousands only, so that "528,91" is no 52891.
NUMBER = r"[-+]?(?:\d{1,3}(?:[, ']\d{3})+(?!\d)|\d+)(?:\.\d+)?"


def _number(text):
    """The first number in a text as an int (rounded down, 万 counted) or None."""
    found = re.search(rf"({NUMBER})\s*(万)?", text)
    if not found:
        return None
    value = float(re.sub(r"[, ']", "", found[1])) * (10_000 if found[2] else 1)
    return math.floor(value + 1e-6)


def _mileage(text):
    return _number(text.replace("+", ""))


def _unit(text):
    found = re.search(
        r"(?P<mi>英里|miles?\b|\bmi\b|\dmi\b)|(?P<km>公里|千米|k(?:ilo)?m(?:et(?:er|re)s?|s)?(?![a-z]))", text, re.I
    )
    return found.lastgroup if found else None


def _time(text):
    found = re.search(r"(\d{1,2})\s*[:点时h]\s*(\d{2})", text)
    if not found:
        return None
    hour, minute = int(found[1]), int(found[2])
    if re.search(r"下午|晚上|傍晚|\bp\.?m\b", text, re.I) and hour < 12:
        hour += 12
    elif re.search(r"上午|凌晨|早上|\ba\.?m\b", text, re.I) and hour == 12:
        hour = 0
    return f"{hour:02d}:{minute:02d}" if hour < 24 and minute < 60 else None


def _temperature(text):
    text = re.sub(r"零下\s*", "-", text.replace("−", "-"))
    value = _number(text)
    if value is not None and re.search(r"℉|°\s*F|华氏|fahrenheit|\d\s*F\b", text, re.I):
        value = round((value - 32) / 1.8)
    return value


def _gear(text):
    for word, gear in (
        ("驻车", "P"),
        ("停车", "P"),
        ("倒", "R"),
        ("空挡", "N"),
        ("空档", "N"),
        ("前进", "D"),
        ("行车", "D"),
    ):
        if word in text:
            return gear
    words = {"park": "P", "parking": "P", "reverse": "R", "neutral": "N", "drive": "D"}
    for word, gear in words.items():
        if re.search(rf"\b{word}\b", text, re.I):
            return gear
    found = re.search(r"(?<![A-Za-z])([PRNDSMprnds]\d?|\d)(?![A-Za-z\d])", text)
    return found[1].upper() if found else None


READERS = {"mileage": _mileage, "speed": _number, "time": _time, "temperature": _temperature, "gear": _gear}


def parse(text):
    """The six facts of an answer, None for each that it does not give. Never raises: models write anything."""
    found = parse_json(text)
    return found if found is not None else _parse_text(text)


def parse_json(text):
    """The facts of a JSON answer, also inside a ``` fence; None where the text holds no JSON object."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        given = json.loads(text[start : end + 1])
    except ValueError:
        return None
    if not isinstance(given, dict):
        return None
    # Other names for the same field, Chinese ones too, are read as in free text.
    lines = []
    for key, value in given.items():
        if value is None or isinstance(value, (dict, list, bool)):
            continue
        if key == "unit":
            lines.insert(0, f"单位 {value}")
            continue
        match = NAME.match(unicodedata.normalize("NFKC", str(key)).strip())
        if match:
            lines.append(f"{match[0]}: {value}")
    facts = _parse_text("\n".join(lines))
    if facts["unit"] is None and isinstance(given.get("unit"), str):
        facts["unit"] = _unit(given["unit"])
    return facts


def _parse_text(text):
    # NFKC turns full-width digits, commas, colons and ℃ into the plain ones ("℃" becomes "°C").
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"[*_`#|]+", " ", text)
    facts = dict.fromkeys(FIELDS)
    matches = list(NAME.finditer(text))
    for i, match in enumerate(matches):
        field = match.lastgroup
        if field == "other" or facts[field] is not None:
            continue
        end = matches[i + 1].start() if i + 1 < len(matches) else len(text)
        # A field's value stands in its line and its sentence; a full stop between digits is a decimal point.
        part = re.split(r"\n(?=\s*\S)|[。;]|\.(?=\s|$)", text[match.end() : end].lstrip(" \t:\n"))[0]
        if NOT_SHOWN.search(part):
            continue
        facts[field] = READERS[field](part)
        if field == "mileage" and facts["mileage"] is not None:
            facts["unit"] = _unit(part) or _unit(match[0])
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
