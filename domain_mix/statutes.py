"""Chinese statutes as plain text or markdown: their articles, headings, annexes and versions.

A statute is a list of articles (第X条, 第X条之一) under headings (编 part, 章 chapter, 节 section, or 附则 without a number).
Before it stand a title, perhaps the dates of its versions and a table of contents (目录); after it perhaps annexes
(附件, 附表), which are no articles.
"""

import re
from dataclasses import dataclass, field

from versions import DAY, NOTE, NUMBER, YEAR, dates_in, is_title, number_value, published

HEADING = re.compile(rf"第\s?({NUMBER})\s?(编|篇|分编|章|节)(?=\s|$|[^\s，。、的])(\s*)(.*)")
ARTICLE = re.compile(rf"第\s?({NUMBER})\s?条((?:之{NUMBER})?)(\s*)(.*)")
LEVELS = {"编": 0, "篇": 0, "分编": 1, "章": 2, "节": 3}
CONTENTS = ("目录", "目次")
BARE = ("总则", "分则", "附则")  # headings that need no number
GOES_ON = "第规所之，、和或与及至以中的"  # after 第五条 or 第一章 these go on with a sentence
ANNEX = re.compile(rf"附\s*([件表图录]?)(?:\s*({NUMBER}))?(\s*)(.*)")


@dataclass(eq=False)
class Law:
    """One text of a law. date: (year, month, day), (year,) or (); certain: its title is surely the name of a law."""

    title: str
    date: tuple
    certain: bool
    articles: int = 0
    found: list = field(default_factory=list)  # (line, row or what is wrong)


def read(text, stem):
    """The laws in a text, in order. stem: the file's name without its suffix, which may have a date and be the title."""
    lines = [clean(line) for line in text.splitlines()]
    starts = split(lines)
    return [
        read_law(lines, start, end, stem if len(starts) == 1 else "")
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
    ]


def clean(line):
    """(text, depth) of a line without marks of markdown; depth: of a # heading, 0 where it is none."""
    line = re.sub(
        r"<!--.{0,200}?-->|[\u200b\ufeff]", "", line
    ).strip()  # Python's strip takes the full-width space, too
    mark = re.match(r"(?:>\s*)*(#{1,6}(?=\s|第|附)|[-*+](?=\s))?\s*", line)
    depth = len(mark[1]) if mark[1] and mark[1].startswith("#") else 0
    line = re.sub(rf"^(\*\*|__)(第{NUMBER}条(?:之{NUMBER})?)\1\s*", r"\2　", line[mark.end() :])
    line = re.sub(r"\*\*|__(?=\S)|(?<=\S)__", "", line).strip()
    return ("" if re.fullmatch(r"[-*_=\s]{3,}", line) else line.rstrip("#").strip() if depth else line), depth


def split(lines):
    """Where each law of a text begins. Another one begins at a title between an article and the next 第一条."""
    starts, last = [0], None
    for at, (text, _) in enumerate(lines):
        if last is not None and is_annex(text):
            break
        found = ARTICLE.fullmatch(text)
        if found and not found[2] and (found[3] or found[4][:1] not in GOES_ON):
            titles = [] if last is None else [each for each in range(last + 1, at) if is_title(lines[each][0])]
            if number_value(found[1]) == 1 and titles:
                starts.append(titles[0])
            last = at
    return starts


def read_law(lines, start, end, stem):
    first = next((at for at in range(start, end) if starts_article(ARTICLE.fullmatch(lines[at][0]), 0, 0)), end)
    law = Law(*title_of([text for text, _ in lines[start:first]], stem))
    numbered = any(HEADING.fullmatch(text) for text, _ in lines[start:end])
    headings, depths, article, unnamed, last, part = {}, {}, None, None, 0, 0
    at = contents_end(lines, start, end)

    def close():
        if article:
            law.articles += 1
            law.found.append((article["line"], statute_row(law.title, article)))

    while at < end:
        text, depth = lines[at]
        at += 1
        found, heading = ARTICLE.fullmatch(text), heading_of(text)
        if found and not starts_article(found, last, part):
            found = None
        if last and is_annex(text):
            close()
            begin, article, at = at, None, annex_end(lines, at, end, last, part)
            count = 1 + sum(bool(text) for text, _ in lines[begin:at])
            law.found.append((begin, f"{text[:30]}: an annex, no article; not read, lines: {count}"))
        elif found:
            close()
            value, between = number_value(found[1]), number_value(found[2][1:] or "零")
            name = f"第{found[1]}条{found[2]}"
            if value != (last if between else last + 1):
                wrong = f"{name} follows article {last}: {'a repeat' if value <= last else 'one is missing'}"
                law.found.append((at, wrong))
            last, part, unnamed = value, between, None
            above = [headings[level] for level in sorted(headings)]
            article = {"line": at, "name": name, "text": [found[4]], "headings": above}
        elif unnamed is not None and 0 < len(text) <= 30 and (not heading or tidy(text) in BARE) and "。" not in text:
            headings[unnamed] += f" {tidy(text)}"  # 第一章 on one line, 总则 on the next
            unnamed = None
        elif heading or (depth and 0 < len(text) <= 60 and (last or (not numbered and text != law.title))):
            close()
            article = None
            if heading:
                level, name = heading
                depths |= {depth: level} if depth else {}
            else:  # a # heading without a number: where numbered ones of its depth stand, or under those above
                over = max((depths[up] for up in depths if up < depth), default=-1)
                level, name = depths.get(depth, over + 0.5), text
            headings = {above: text for above, text in headings.items() if above < level} | {level: name}
            unnamed = level if heading and " " not in name and name not in BARE else None
        elif article:
            article["text"].append(text)
        elif text:
            unnamed = None
    close()
    return law


def annex_end(lines, at, end, last, part):
    """Where the law goes on: an annex between two articles ends at the next one, with the headings above it."""
    for each in range(at, end):
        found = ARTICLE.fullmatch(lines[each][0])
        if starts_article(found, last, part):
            if not follows(found, last, part):  # an article of the annex's own: it goes on to the end
                return end
            while each > at and (not lines[each - 1][0] or heading_of(lines[each - 1][0])):
                each -= 1
            return each
    return end


def title_of(lines, stem):
    """(title, date, certain) from what stands above the first article, and from the file's name."""
    name = NOTE.sub("", stem).strip("《》 ")
    above = []
    for text in lines:
        if heading_of(text) or "".join(text.split()) in CONTENTS:
            break
        if 0 < len(text) <= 100 and not text.startswith(("（", "(")):
            above.append(text.strip("《》"))
    titles = [text for text in above if is_title(text) and not DAY.search(NOTE.sub("", text))]
    titles.sort(key=lambda text: NOTE.sub("", text).endswith("决定"))  # 关于修改…的决定, and then the law itself
    title = titles[0] if titles else name if is_title(name) else above[0] if above else name
    dates = [date for text in (stem, title) for date in dates_in(text)][:1] or published(lines)
    dates = dates or [(int(match[1]),) for text in lines for match in YEAR.finditer(text)]
    return title, max(dates, default=()), bool(titles) or is_title(name)


def contents_end(lines, start, end):
    """Where the text behind the table of contents begins: where its first entry comes a second time."""
    marker, entries = None, []
    for at in range(start, end):
        text = lines[at][0]
        found, heading = ARTICLE.fullmatch(text), HEADING.fullmatch(text)
        if "".join(text.split()) in CONTENTS and not entries:
            marker = at
        elif "。" in text and entries:
            break
        elif heading_of(text):
            entries.append((at, (heading[2], number_value(heading[1])) if heading else tidy(text)))
        elif starts_article(found, 0, 0):
            if marker is None:
                break
            entries.append((at, ("条", number_value(found[1]))))
        if len(entries) > 1 and entries[-1][1] == entries[0][1]:
            return at
    levels = [entry[0] for _, entry in entries if isinstance(entry, tuple)]
    article = levels.index("条") if "条" in levels else len(levels)
    if marker is not None and len(set(levels[:article])) < article:  # two chapters without an article: contents only
        return next((at for at, entry in entries if entry[0] == "条"), at)
    return start


def is_annex(text):
    """附件, 附表1：收费标准, （附件略); not 附件所列的…, with which a sentence goes on."""
    found = ANNEX.fullmatch(text.strip("（(【】)） "))
    if not found or not (found[1] or found[4][:1] in (":", "：")):
        return False
    if not found[4] or found[3] or found[4][0] in ":：（(略】":
        return True
    return bool(found[2]) and not re.search("[。；，]", found[4]) and found[4][0] not in GOES_ON.replace("、", "")


def heading_of(text):
    """(level, name) of a heading, else None. 第一章规定的情形… is a sentence that was broken at a line's end."""
    if tidy(text) in BARE:
        return 0, tidy(text)
    found = HEADING.fullmatch(text) if len(text) <= 60 and "。" not in text else None
    if not found or text.endswith(("；", "：", "，")):
        return None
    if not found[3] and found[4] and found[4][0] in GOES_ON:
        return None
    return LEVELS[found[2]], f"第{found[1]}{found[2]} {tidy(found[4])}".strip()


def tidy(text):
    """总　则 -> 总则: the space that spreads a title of a few characters over the line."""
    return "".join(text.split()) if all(len(part) == 1 for part in text.split()) else text


def starts_article(found, last, part):
    """第五条　读者… begins an article; 第五条第二款规定的… is a sentence that was broken at a line's end."""
    if not found or found[3] or not found[4]:
        return bool(found)
    return follows(found, last, part) and found[4][0] not in GOES_ON


def follows(found, last, part):
    """Whether 第五条 or 第四条之二 is the next article after number `last` and its 之`part`."""
    between = number_value(found[2][1:] or "零")
    return (number_value(found[1]), between) == ((last, part + 1) if between else (last + 1, 0))


def statute_row(title, article):
    text = "\n".join(line for line in article["text"] if line)
    if not text:
        return f"{article['name']} has no text"
    context = " ".join([title, *article["headings"]])
    return {"instruction": f"《{title}》{article['name']}是怎么规定的？", "input": context, "output": text}
