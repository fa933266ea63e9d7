"""Which gauge a name in an answer means: the one asked for, or one that nobody asked for (coolant temperature, speed limit).

A dashboard has more gauges than a list can name. So a name asks for its field only among words that are known to leave its
meaning alone: those of every field, and its own.
"""

import re

# What a field is called, in Chinese and in other languages. A name ends the field before it.
NAMES = {
    "mileage": (r"里程表?|(?:共|已经?|累计)行驶了?", r"odometer|mileage|odo|kilometerstand"),
    "speed": (r"时速(?!度)|车速|速度", r"speedometer|speed|geschwindigkeit"),
    "time": (r"时间|时钟", r"clock|time|uhrzeit"),
    "temperature": (r"温度|气温", r"temperature|temp|außentemperatur"),
    "gear": (r"[挡档]位|变速[箱器]", r"transmission|gear|gang"),
    # Not asked for, but models add them; without these their numbers would count as the field before.
    "other": (r"续航|油量|燃油|油耗|转速|电量|日期", r"trip|range|fuel|rpm|battery|date"),
}
NAME = re.compile(
    "|".join(rf"(?P<{key}>{zh}|(?<![a-zß-ÿ])(?:{en})(?![a-zß-ÿ]))" for key, (zh, en) in NAMES.items()), re.I
)
# The words that leave a name's meaning alone: of every field, and of each.
PLAIN = """
    a an the its it's this that my your of in on at by as for and or with to current currently present now shown displayed
    indicated actual exact reading readings value display dashboard dash panel screen cluster instrument gauge meter dial needle
    digital analog left right upper lower bottom center centre middle main vehicle car approximately approx about around
    roughly only unit result results data facts info information answer der die das aktuelle aktueller
    当前 目前 现在 现时 此时 实时 现 的 车辆 汽车 爱车 车 该 此 这 那 本 辆 台 其 仪表盘 仪表 表盘 面板 屏幕 屏 盘 图片 图像 照片 图 中间 中央 中 上 左
    右 下 方 侧 边 底部 顶部 中部 数字 指针 约 大约 处于 处 位置 在 表 计 值 数 读数 单位 状态 指示 信息 度 每 或 以 当 前
"""
OWN = {
    "mileage": "total overall cumulative accumulated lifetime odometer odo driven km kilometers kilometres mi mile miles "
    "总 总计 总共 累计 累积 行驶 已 共 公里 英里 千米 万",
    "speed": "driving travelling traveling travel road ground speedometer km mi h kmh kph mph per hour miles kilometers "
    "行驶 驾驶 瞬时 即时 公里 英里 千米 小时 时",
    "time": "date 日期 local clock day h hh mm am pm hour hours format system 北京 系统 本地 当地 小时 制 格式",
    "temperature": "outside outdoor outdoors exterior external ambient air outer environment environmental degrees degree deg "
    "c f celsius fahrenheit sensor minus 外部 室外 车外 户外 外界 外 环境 大气 空气 摄氏 华氏 零下",
    "gear": "position selector selection selected lever shift shifter stick engaged active automatic indicator chosen mode "
    "state status transmission gearbox 变速箱 变速器 自动 选择 所在 所",
}
KNOWN = {field: {*f"{PLAIN} {words}".split()} for field, words in OWN.items()}
# Where the words before a name no longer belong to it, and where those after it begin to say its value.
AFTER = """
    is was are ist reads read shows displays indicates says points stands appears seems cannot not isn't unknown unclear unreadable none null
    是 为 显示
"""
BEFORE = """
    a an the its this that my your and or in on at with show showing see km mi mph kmh kph h c f visible available
    看到 看出 看见 可见 可知 读出 和 与 及 公里 英里 千米 小时 分 秒 度 挡 档
"""
AFTER, BEFORE = {*AFTER.split()}, {*f"{AFTER} {BEFORE}".split()}
WORD = {}
for _field, _words in KNOWN.items():
    _chinese = sorted((word for word in _words | BEFORE if word > "一"), key=len, reverse=True)
    WORD[_field] = re.compile(rf"{'|'.join(_chinese)}|[一-鿿]|[a-zß-ÿ'’]+")
# Directly after a Chinese name that no colon follows.
OTHER_GAUGE = re.compile(r"限|提醒|报警|预警|警告|差|间隔|上限|设定")
GEARS = {
    "P": "驻车|停车|park(?:ing)?",
    "R": "倒|reverse",
    "N": "空[挡档]|neutral",
    "D": "前进|行车|drive",
    "L": "低速|low",
}
GEAR = re.compile(
    # A letter that stands alone, M3, 3rd or a word, whatever comes first.
    r"(?<![A-Za-z\d])(?<![A-Za-z]['’])(?P<letter>[PRNDSMLBEW]\d?|\d)(?:st|nd|rd|th)?(?!['’]?[A-Za-z\d])|"
    + "|".join(rf"(?P<{gear}>(?<![a-z])(?:{words})(?![a-z]))" for gear, words in GEARS.items()),
    re.I,
)


def known(field, words, ends):
    """Whether all words, up to one at which the phrase ends, leave a field's name its meaning."""
    for word in words:
        if word in ends:
            return True
        if word not in KNOWN[field]:
            return False
    return True


def words_of(text, field):
    """A text's words, of the Chinese ones those that are known, else single characters."""
    return [re.sub(r"['’]s?$", "", word) for word in WORD[field].findall(text.lower())]


def rest_of_label(text, name, before, end, previous):
    """How long the rest of a label after its name is; None where the words around the name say that it is another gauge's.

    before, end: where the name before this one ended and the next begins; previous: the field of the one before.
    """
    field = name.lastgroup
    run = re.match(r"(?:[^\W\d_]|[ '’])*", text[max(0, name.start() - 60) : name.start()][::-1])[0][::-1]
    gear = previous == "gear" and GEAR.fullmatch(text[before : name.start()].strip(" :"))  # Gear Park Speed 54
    if not gear and not known(field, reversed(words_of(run, field)), BEFORE):
        return None
    tail = re.match(r"(?:[^\d:=,;。\n()]|\([^()\n]*\)(?=\s*[:=]))*", text[name.end() : end])[0]
    colon = text[name.end() + len(tail) : end][:1] in (":", "=")
    words = words_of(tail, field)
    if not colon and words and words[0] > "一":
        return None if OTHER_GAUGE.match(tail.strip()) else 0
    gears = [word for word in words if field == "gear" and GEAR.fullmatch(word)]
    return (len(tail) if colon else 0) if known(field, words, AFTER.union(gears)) else None
