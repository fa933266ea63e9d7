"""What is right in the exercises of vl_insurance, and the usual mistakes."""

import math
import re

import numpy as np

import fields
import pictures
from check import ROOT, Function, Number

# -- 1: image tokens


def right_1(width, height, max_pixels):
    return pictures.image_tokens((width, height), max_pixels)


def sides(width, height, max_pixels, patch=28, cap=True, after=math.floor, before=round):
    w, h = before(width / patch) * patch, before(height / patch) * patch
    if cap and w * h > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        w, h = after(width / scale / patch) * patch, after(height / scale / patch) * patch
    return w * h // patch**2


def no_cap(width, height, max_pixels):
    return sides(width, height, max_pixels, cap=False)


def patches_of_14(width, height, max_pixels):
    return sides(width, height, max_pixels, patch=14)


def rounded_after_scaling(width, height, max_pixels):
    return sides(width, height, max_pixels, after=round)


def rounded_up(width, height, max_pixels):
    return sides(width, height, max_pixels, before=math.ceil)


def area_alone(width, height, max_pixels):
    return min(width * height, max_pixels) // 28**2


def scaled_by_the_area(width, height, max_pixels):
    scale = max(1, width * height / max_pixels)
    return (
        max(1, math.floor(width / scale / 28)) * max(1, math.floor(height / scale / 28))
        if scale > 1
        else sides(width, height, max_pixels)
    )


def task_1():
    return Function(
        "image_tokens",
        right_1,
        [(560, 280, 10**6), (640, 480, 401408), (4032, 3024, 1003520), (1000, 700, 401408), (300, 200, 10**6), (1200, 90, 60000)],
        [
            (no_cap, "Over max_pixels the photo is made smaller: a phone's 12 megapixels would take 15,552 tokens.",
             "超过 max_pixels 的照片要缩小：手机的 1200 万像素会占 15,552 个 token。"),
            (patches_of_14, "The encoder's patches have 14 pixels; four of them, 28 x 28 pixels, make one token.",
             "编码器的图块是 14 像素；四块（28 x 28 像素）合成一个 token。"),
            (rounded_after_scaling, "Rounded up, a scaled photo may be over max_pixels again. After scaling, round DOWN.",
             "缩放后向上舍入，可能又超过 max_pixels。缩放之后要向下取整。"),
            (rounded_up, "Sides are rounded to the nearest multiple of 28, not up.", "边长取最接近的 28 的倍数，不是向上取。"),
            (area_alone, "Tokens are whole rows and columns of 28 pixels: round each side, not the area.",
             "token 是整行整列的 28 像素方块：对每条边取整，而不是对面积。"),
            (scaled_by_the_area, "The area shrinks by that factor, each side by its square root.", "面积缩小这么多倍，每条边缩小它的平方根倍。"),
        ],
        ("How many squares of 28 x 28 fit along each side after resizing?", "缩放之后每条边放得下几个 28 像素？"),
        "vl_insurance/pictures.py, image_tokens; transformers' smart_resize",
    )  # fmt: skip


# -- 2: photos that lie on their side


def right_2(pixels, orientation):
    from PIL import Image

    image = Image.fromarray(np.asarray(pixels, np.uint8))
    image.getexif()[0x0112] = orientation
    turn = pictures._turn(image)
    return np.asarray(image if turn is None else image.transpose(turn)).tolist()


def as_it_lies(pixels, orientation):
    return pixels


def other_way(pixels, orientation):
    return np.rot90(pixels, {6: 1, 8: 3, 3: 2}.get(orientation, 0))


def upside_down_forgotten(pixels, orientation):
    return np.rot90(pixels, {6: 3, 8: 1}.get(orientation, 0))


def always_turned(pixels, orientation):
    return np.rot90(pixels, 3) if orientation != 1 else pixels


def transposed(pixels, orientation):
    return np.transpose(pixels) if orientation in (6, 8) else np.rot90(pixels, 2) if orientation == 3 else pixels


def task_2():
    wide = np.arange(6).reshape(2, 3) * 10
    return Function(
        "upright",
        right_2,
        [(wide, orientation) for orientation in (1, 6, 8, 3)],
        [
            (as_it_lies, "Phones save the sensor's pixels and a note how to turn them. Without it a quarter of your training photos lies on "
             "its side.", "手机保存的是传感器的像素和一个“怎样旋转”的标记。不看它，训练照片里有一部分就是躺着的。"),
            (other_way, "The other way round: 6 means turn clockwise, 8 counter-clockwise. numpy.rot90 turns counter-clockwise.",
             "方向反了：6 是顺时针转，8 是逆时针。numpy.rot90 默认逆时针。"),
            (upside_down_forgotten, "3 is upside down: turn it by half.", "3 是上下颠倒：转 180 度。"),
            (always_turned, "Each orientation has a turn of its own.", "每种方向各有各的转法。"),
            (transposed, "A transposed picture is mirrored: its digits read backwards.", "转置会镜像：数字就反了。"),
        ],
        ("Draw three by two squares with numbers, and turn the paper.", "在纸上画三乘二的格子，写上数字，转一转纸。"),
        "vl_insurance/pictures.py, load_image",
    )  # fmt: skip


# -- 3: the mileage in an answer


def right_3(text):
    return fields.parse(text)["mileage"]


def number_of(text, pattern=r"总里程[：:]\s*([\d,]+(?:\.\d+)?)\s*(万)?", ten_thousands=True, comma=True):
    found = re.search(pattern, text)
    if not found:
        return None
    value = float(found[1].replace(",", "")) if comma else float(found[1].split(",")[0])
    return int(value * (10_000 if ten_thousands and found[2] else 1) + 1e-6)


def first_number(text):
    return number_of(text, r"([\d,]+(?:\.\d+)?)\s*(万)?")


def all_digits(text):
    line = next((each for each in text.splitlines() if "总里程" in each), "")
    digits = "".join(filter(str.isdecimal, line))
    return int(digits) if digits else None


def cut_at_the_comma(text):
    return number_of(text, comma=False)


def wan_ignored(text):
    return number_of(text, ten_thousands=False)


def zero_for_none(text):
    return number_of(text) or 0


def task_3():
    texts = [
        "总里程：52,891 km",
        "当前速度：60 km/h\n总里程：128915 公里",
        "总里程：5.2万公里",
        "总里程：未显示\n当前温度：21 ℃",
        "总里程：12345.6 km",
        "总里程: 1,052,891 km",
    ]
    return Function(
        "mileage",
        right_3,
        [(text,) for text in texts],
        [
            (first_number, "The first number of the answer may be the speed. Look behind 总里程.", "回答里的第一个数可能是速度。到“总里程”后面去找。"),
            (all_digits, "All digits together: 12345.6 km becomes 123456. Where does the number end?", "把数字全连起来，12345.6 就成了 123456。数到哪里为止？"),
            (cut_at_the_comma, "52,891 is one number: the comma separates thousands.", "52,891 是一个数：逗号是千位分隔。"),
            (wan_ignored, "5.2万 is 52,000.", "5.2万是 52,000。"),
            (zero_for_none, "Not shown is not zero: None. A zero would be a hallucination of yours.", "未显示不等于零：应为 None。写成零就是你自己的幻觉。"),
        ],
        ("Take the answers one by one: thousands, 万, decimals, nothing shown.", "逐个看这些回答：千位逗号、万、小数、未显示。"),
        "vl_insurance/fields.py, parse, which knows many more ways to write it",
    )  # fmt: skip


# -- 4: precision and recall


def right_4(predicted, truth):
    facts = [[dict.fromkeys(fields.FIELDS) | {"mileage": value} for value in values] for values in (predicted, truth)]
    found = fields.score(*facts)["fields"]["mileage"]
    return found["precision"], found["recall"]


def counted(predicted, truth, absent_right=0, wrong_missed=1):
    pairs = list(zip(predicted, truth, strict=True))
    right = sum(a == b and b is not None for a, b in pairs)
    absent = sum(a is None and b is None for a, b in pairs) * absent_right
    missed = sum(a is None and b is not None for a, b in pairs)
    wrong = sum(a is not None and b is not None and a != b for a, b in pairs)
    made = sum(a is not None and b is None for a, b in pairs)
    return (right + absent) / (right + absent + wrong + made), (right + absent) / (
        right + absent + missed + wrong * wrong_missed
    )


def absent_counts(predicted, truth):
    return counted(predicted, truth, absent_right=1)


def wrong_is_not_missed(predicted, truth):
    return counted(predicted, truth, wrong_missed=0)


def swapped(predicted, truth):
    return right_4(predicted, truth)[::-1]


def accuracy(predicted, truth):
    share = sum(a == b for a, b in zip(predicted, truth, strict=True)) / len(truth)
    return share, share


def over_all(predicted, truth):
    right = sum(a == b and b is not None for a, b in zip(predicted, truth, strict=True))
    return right / len(truth), right / len(truth)


def task_4():
    cases = [([100, 200], [100, 200]), ([100, None, 300, None], [100, 200, 300, None]), ([100, 250, 300], [100, 200, None]),
             ([None, 5, 6, 7, None], [None, 5, None, 8, 9])]  # fmt: skip
    return Function(
        "rates",
        right_4,
        cases,
        [
            (absent_counts, "\"Nothing shown, nothing said\" is right, but no value was read: a model that never answers would look good.",
             "“没显示就不说”是对的，但没有读出任何值：从不回答的模型也会显得很好。"),
            (wrong_is_not_missed, "A wrong value is two mistakes: one value that is not there, and the true one missed.",
             "读错一个值是两处错误：说了不存在的值，又漏了真实的值。"),
            (swapped, "The two are swapped. Precision: of what was SAID; recall: of what is SHOWN.", "两者写反了。精确率：说出的里面；召回率：显示的里面。"),
            (accuracy, "That is the share of equal entries. What was said, and what is shown, are two different totals.",
             "这是相等的比例。“说出的”和“显示的”是两个不同的总数。"),
            (over_all, "You divide by all photos. What is not shown cannot be recalled, what is not said cannot be precise.",
             "你除以了全部照片。没显示的谈不上召回，没说的谈不上精确。"),
        ],
        ("Count four kinds: right, wrong, missed, made up.", "数四种情况：读对、读错、漏读、编造。"),
        "vl_insurance/fields.py, score",
    )  # fmt: skip


# -- 5: without looking


def without_looking():
    import evaluate
    import sheet

    _, rows = sheet.read_table(ROOT / "vl_insurance" / "sample")
    truth = [fields.parse(row["response"]) for _, row in rows]
    return 100 * evaluate.trivial(truth)["commonest value"]["micro"]["exact"]


def task_5():
    return Number(
        without_looking,
        6,
        [
            ((0, 12), "The unit alone has two values only, and four of the fields are often not shown at all.",
             "单位只有两种取值，而且有四个字段常常根本不显示。"),
            ((45, 100), "The mileage is never the same twice, and makes a sixth of the fields.", "总里程几乎不会重复，它占字段的六分之一。"),
        ],
        ("Open the sheet: how often does each field's commonest value stand there?", "打开表格看看：每个字段最常见的值出现多少次？"),
        "vl_insurance/evaluate.py, trivial: two lines of the report",
    )  # fmt: skip
