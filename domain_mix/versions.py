"""What the name of a law and the dates in it say: whether it is one, of which law, which version is the newest.

Dates are tuples: (year, month, day), or (year,) where no more is known, or (). A year alone is neither older nor newer
than a day of that year.
"""

import re

DIGITS = str.maketrans("零〇○一二两三四五六七八九", "0001223456789")
NUMBER = r"[零〇一二两三四五六七八九十百千0-9０-９]{1,12}"
NAMES = "法|法典|修正案|条例|办法|规定|规则|细则|通则|准则|章程|规程|解释|决定|决议|批复"
TITLE = re.compile(rf"[^。；，：:（(][^。；，：:]{{0,60}}(?:{NAMES})")

WRITTEN = "[一二][零〇○一二三四五六七八九]{3}"
DAY = re.compile(rf"(?<!\d)((?:19|20)\d\d|{WRITTEN})\s?[年./_-]\s?({NUMBER})\s?[月./_-]\s?({NUMBER})日?")
COMPACT = re.compile(r"(?<!\d)((?:19|20)\d\d)(0[1-9]|1[0-2])([0-2]\d|3[01])(?!\d)")
YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(?=年?(?:修正|修订|修改|公布|版|本?[)）]))")
NOTE = re.compile(
    r"\s*[（(\[【][^（()）]*(?:19|20)\d\d[^（()）]*[)）\]】]"
    r"|[\s_-]*(?:19|20)\d\d(?:\d{4}|[-_.]\d\d?[-_.]\d\d?|年?(?:修正|修订|修改)?版?本?)$"
)
PUBLISHED = re.compile("公布|发布|颁布|修订|修正|修改|通过|印发")


def number_value(text) -> int:
    """一百二十三 or 123 or １２３ -> 123."""
    if text.isdecimal():
        return int(text)
    total, digit = 0, 0
    for char in text:
        unit = {"十": 10, "百": 100, "千": 1000}.get(char)
        if unit:
            total, digit = total + (digit or 1) * unit, 0
        else:
            digit = int(char.translate(DIGITS))
    return total + digit


def is_title(text):
    """Whether a line is the name of a law; brackets at its end are no part of that: 解释（二）, 条例（2018年修正）."""
    return len(text) <= 100 and bool(
        TITLE.fullmatch(re.sub(r"(\s*[（(][^（()）]*[)）])+$", "", NOTE.sub("", text)).strip("《》 "))
    )


def dates_in(text):
    """Dates in a name: of a day if there is one, else of a year."""
    days = [day(*match.groups()) for pattern in (DAY, COMPACT) for match in pattern.finditer(text)]
    return days or [(int(match[1]),) for match in YEAR.finditer(text)]


def published(lines):
    """The days on which a law was passed, published or amended, as said above its articles. 自…起施行 is none of them."""
    dates = []
    for line in lines:
        for match in DAY.finditer(line):
            ahead = line[max(match.start() - 8, 0) : match.start()]
            behind = DAY.split(line[match.end() : match.end() + 80], maxsplit=1)[0]
            if not behind.startswith(("起", "施行")) and "施行" not in ahead and PUBLISHED.search(f"{ahead} {behind}"):
                dates.append(day(*match.groups()))
    return dates


def day(*parts):
    return int(parts[0].translate(DIGITS)), *(number_value(part) for part in parts[1:])


def law_key(title):
    """What the versions of one law have in common."""
    return re.sub(r"\s", "", NOTE.sub("", title)).removeprefix("中华人民共和国")


def question_key(question):
    """(law, number, number after 之) that statute_row's question asks for, whatever the version; else None."""
    found = re.fullmatch(rf"《(.{{1,100}})》第({NUMBER})条(?:之({NUMBER}))?是怎么规定的？", question)
    return found and (law_key(found[1]), number_value(found[2]), number_value(found[3] or "零"))


def newer(one, other):
    """Whether a date is surely after another."""
    common = min(len(one), len(other))
    return one[:common] > other[:common]


def superseded(laws):
    """{older text: the newest text} of laws in several versions, as far as dates tell which is newer."""
    versions = {}
    for law in laws:
        if law.certain:
            versions.setdefault(law_key(law.title), []).append(law)
    return {
        law: max((each for each in texts if newer(each.date, law.date)), key=lambda each: each.date)
        for texts in versions.values()
        for law in texts
        if any(newer(each.date, law.date) for each in texts)
    }
