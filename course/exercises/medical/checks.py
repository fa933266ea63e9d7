"""What is right in the exercises of medical, and the usual mistakes."""

import contextlib
import io
import math
import string

import data
from check import Function, Number

# -- 1: leaks


def right_1(train, test):
    import pyarrow as pa

    known, asked = (
        data.normalise(pa.chunked_array([pa.array(each, pa.string())])).to_pylist() for each in (train, test)
    )
    return [question for question, key in zip(test, asked, strict=True) if key in known]


def letter_by_letter(train, test):
    return [question for question in test if question in train]


def lower_and_strip(train, test):
    known = {question.strip().lower() for question in train}
    return [question for question in test if question.strip().lower() in known]


def ascii_signs(train, test):
    def key(text):
        return "".join(each for each in text.lower() if each not in string.punctuation and not each.isspace())

    known = set(map(key, train))
    return [question for question in test if key(question) in known]


def case_kept(train, test):
    def key(text):
        return "".join(filter(str.isalnum, text))

    known = set(map(key, train))
    return [question for question in test if key(question) in known]


def other_side(train, test):
    return right_1(test, train)


def as_a_set(train, test):
    return list(dict.fromkeys(right_1(train, test)))


def task_1():
    train = ["头疼怎么办？", "Is it a cold?", "失眠三个月了", "血压 高吗"]
    cases = [(train, ["胃疼怎么办？", "Is it a cold?"]), (train, ["头疼怎么办", "is it a cold ?", "失眠三个月了……", "血压高吗？"]),
             ([*train, "失眠"], [" 失眠 ", "IS IT A COLD?"]),
             (train, ["头疼，怎么办！", "头疼，怎么办！", "头疼"]), ([], ["失眠"]), (train, [])]  # fmt: skip
    return Function(
        "leaks",
        right_1,
        cases,
        [
            (letter_by_letter, "Compared letter by letter, 头疼怎么办 and 头疼怎么办？ are two questions. People ask the same with other signs.",
             "逐字比较时，“头疼怎么办”和“头疼怎么办？”成了两个问题。同样的问题标点常常不同。"),
            (lower_and_strip, "Blanks and signs in the middle and at the end make questions different for you.",
             "中间和末尾的空格、标点让你把相同的问题当成不同的。"),
            (ascii_signs, "string.punctuation has ASCII's signs only: ？，……are left.", "string.punctuation 只有 ASCII 标点：？，……都留下了。"),
            (case_kept, "Is it a cold? and is it a cold? are one question.", "Is it a cold? 和 is it a cold? 是同一个问题。"),
            (other_side, "You return the training questions. The held-out ones are asked.", "你返回的是训练集的问题。要的是留出的问题。"),
            (as_a_set, "A held-out question that stands there twice is measured twice: return it twice.", "留出集里出现两次的问题会被测量两次：返回两次。"),
        ],
        ("Reduce each question to its letters and digits, then compare.", "先把每个问题化简到只剩字母、汉字和数字，再比较。"),
        "medical/data.py, normalise and split",
    )  # fmt: skip


# -- 2: encodings


def right_2(content):
    from common.text import encoding_of_bytes

    return content.decode(encoding_of_bytes(content))


def errors_ignored(content):
    return content.decode("utf-8", errors="ignore")


def gb_first(content):
    try:
        return content.decode("gb18030")
    except UnicodeDecodeError:
        return content.decode("utf-8-sig")


def mark_left(content):
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("gb18030")


def latin_1(content):
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def utf_8_only(content):
    return content.decode("utf-8-sig")


def task_2():
    text = "头疼怎么办，吃什么药好？请多休息，按时吃饭，少熬夜。"
    cases = [
        (text.encode("utf-8"),),
        (text.encode("gb18030"),),
        (text.encode("utf-8-sig"),),
        (b"question,answer",),
        ("发烧，咳嗽".encode(),),
        ("头疼".encode() * 2,),
    ]
    return Function(
        "read",
        right_2,
        cases,
        [
            (errors_ignored, "errors=\"ignore\" throws characters away without a word: of a GBK file nearly everything.",
             "errors=\"ignore\" 会悄悄丢掉字符：GBK 文件几乎全丢。"),
            (gb_first, "Most UTF-8 text is valid GBK as well, and comes out as nonsense. Which of the two seldom accepts the other's bytes? "
             "Try that first.", "多数 UTF-8 文本也是合法的 GBK，解出来却是乱码。两者中哪一个很少误收另一种的字节？先试它。"),
            (mark_left, "Excel writes a mark (BOM) before UTF-8. You leave it in, and the first column is no longer called question.",
             "Excel 会在 UTF-8 前面写一个标记（BOM）。你把它留下了，第一列就不叫 question 了。"),
            (latin_1, "latin-1 accepts all bytes, so it never fails, and is never right for Chinese.", "latin-1 什么字节都收，从不报错，对中文也从不正确。"),
            (utf_8_only, "Files that Excel saved in China are GBK: what then?", "中文 Excel 存的文件是 GBK：那怎么办？"),
        ],
        ("Three kinds come in: UTF-8, UTF-8 with a mark in front, GBK.", "会来三种：UTF-8、前面带标记的 UTF-8、GBK。"),
        "common/text.py, encoding_of_bytes, which knows two dozen more and says how sure it is",
    )  # fmt: skip


# -- 3: too long


def right_3(rows, max_length):
    from common import tokens

    with contextlib.redirect_stdout(io.StringIO()):
        made = tokens.tokenize(
            [{"at": at} for at in range(len(rows))],
            lambda batch: ([rows[each["at"]][0] for each in batch], [rows[each["at"]][1] for each in batch]),
            max_length,
            "rows",
        )
    return [[row["input_ids"], row["labels"]] for row in made]


def cut(rows, max_length):
    return [(ids[:max_length], labels[:max_length]) for ids, labels in rows]


def cut_in_front(rows, max_length):
    return [(ids[-max_length:], labels[-max_length:]) for ids, labels in rows]


def equal_dropped(rows, max_length):
    return [(ids, labels) for ids, labels in rows if len(ids) < max_length]


def answer_alone(rows, max_length):
    return [(ids, labels) for ids, labels in rows if sum(label != -100 for label in labels) <= max_length]


def task_3():
    rows = [
        ([5, 6, 7, 2], [-100, -100, 7, 2]),
        ([5, 6, 7, 8, 2], [-100, 6, 7, 8, 2]),
        ([5, 2], [-100, 2]),
        ([5, 6, 7, 8, 9, 2], [-100] * 4 + [9, 2]),
    ]
    return Function(
        "fitting",
        right_3,
        [(rows, 8), (rows, 5), (rows, 4), (rows[2:], 3)],
        [
            (cut, "A cut row has lost its end token: the model learns that long answers just break off.",
             "截断的行没有了结束 token：模型学到的是长回答会突然中断。"),
            (cut_in_front, "Cut in front, the question is gone, and the model learns to answer what nobody asked.",
             "从前面截断，问题就没了，模型学会回答没人问的东西。"),
            (equal_dropped, "A row of exactly max_length tokens fits.", "正好 max_length 个 token 的行放得下。"),
            (answer_alone, "The whole row has to fit, prompt and answer.", "整行都要放得下，提示词加回答。"),
        ],
        ("Keep or drop: nothing else is done to a row.", "要么保留要么丢弃：不对行做别的事。"),
        "common/tokens.py, tokenize",
    )  # fmt: skip


# -- 4: perplexity


def right_4(rows):
    """As common/answers.py's heldout_loss weighs rows: by their tokens."""
    return math.exp(sum(loss for loss, _ in rows) / sum(count for _, count in rows))


def mean_of_rows(rows):
    return math.exp(sum(loss / count for loss, count in rows) / len(rows))


def mean_of_perplexities(rows):
    return sum(math.exp(loss / count) for loss, count in rows) / len(rows)


def still_the_loss(rows):
    return math.log(right_4(rows))


def of_sums(rows):
    return math.exp(sum(loss for loss, _ in rows) / len(rows))


def base_two(rows):
    return 2 ** math.log(right_4(rows))


def task_4():
    return Function(
        "perplexity",
        right_4,
        [([(2.0, 1)],), ([(10.0, 10), (6.0, 2)],), ([(1.5, 3), (40.0, 50), (0.2, 1)],), ([(0.0, 4), (8.0, 4)],)],
        [
            (mean_of_rows, "A mean of the rows' means: two tokens weigh as much as fifty. Count tokens, not rows.",
             "这是各行均值的均值：两个 token 和五十个一样重。按 token 算，不按行。"),
            (mean_of_perplexities, "exp comes last: the mean of exps is larger than the exp of the mean, and one bad row rules it.",
             "exp 放在最后：exp 的均值大于均值的 exp，一行坏数据就能左右它。"),
            (still_the_loss, "That is the loss. How does perplexity follow from it?", "这是损失。怎样由它得到困惑度？"),
            (of_sums, "You divide by the number of rows. The sums are over tokens.", "你除以了行数。这些和是对 token 求的。"),
            (base_two, "Losses here are natural logs (nats): exp, not 2 to the power.", "这里的损失是自然对数（nat）：用 exp，不是 2 的幂。"),
        ],
        ("Mean loss over all tokens first, then exp.", "先求所有 token 的平均损失，再取 exp。"),
        "common/answers.py, heldout_loss, and common/report.py",
    )  # fmt: skip


# -- 5: what LoRA trains


def trained_millions(r=16):
    from common.speed import fit

    bytes_per_parameter = 16
    return fit.needs(fit.shape_of("Qwen/Qwen2.5-7B-Instruct"), 1, r, False, True)["LoRA"] / bytes_per_parameter / 1e6


def task_5():
    return Number(
        trained_millions,
        5,
        [
            ((1000, 8000), "The 7B weights stay frozen. Only A (r x in) and B (out x r) of each projection are trained.",
             "7B 的权重是冻结的。训练的只有每个投影的 A（r x in）和 B（out x r）。"),
            ((2, 20), "Did you count all seven projections of all 28 layers? The MLP's three are the wide ones.",
             "28 层的七个投影都算了吗？MLP 的三个最宽。"),
            ((0, 2), "Each projection has A and B, and there are 28 layers with seven projections each.", "每个投影都有 A 和 B；共 28 层，每层七个投影。"),
        ],
        ("A projection from `in` to `out` gets r (in + out) numbers. Add up one layer, then take it 28 times.",
         "从 in 到 out 的投影有 r (in + out) 个数。先加一层，再乘 28。"),
        "medical/train.py, load_model, and common/speed/fit.py, needs",
    )  # fmt: skip
