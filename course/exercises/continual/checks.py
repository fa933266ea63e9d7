"""What is right in the exercises of continual, and the usual mistakes."""

import json

import data
import packs
from check import ROOT, Function, Number
from toy import Tokenizer

# -- 1: labels of documents end to end


def right_1(documents):
    from common.speed import packing

    rows = [packs.sequences([(ids, ids) for ids in documents], [list(range(len(documents)))])[0]]
    return packs.collator(packing.collator(None, True, "hf"))(rows)["labels"][0].tolist()


def nothing_skipped(documents):
    return [token for document in documents for token in document]


def first_only(documents):
    return [-100, *nothing_skipped(documents)[1:]]


def last_skipped(documents):
    return [token for document in documents for token in [*document[:-1], -100]]


def shifted(documents):
    return [token for document in documents for token in [*document[1:], -100]]


def task_1():
    cases = [([[5, 6, 7], [8, 9]],), ([[5], [6, 7]],), ([[1, 2, 3]],), ([[4, 5], [4, 5], [4, 5]],)]
    return Function(
        "labels",
        right_1,
        cases,
        [
            (nothing_skipped, "The first token of a document would be foretold by the document before it, which has nothing to do "
             "with it.", "一篇文档的第一个 token 会由前一篇无关的文档来预测。"),
            (first_only, "The first document is right. Each of the others begins as well.", "第一篇对了。其余各篇也都有开头。"),
            (last_skipped, "You skip the last token of each: that is the end, which the model has to learn. What has nothing before "
             "it?", "你跳过的是每篇的最后一个 token：那是结尾，模型必须学。前面什么都没有的是哪一个？"),
            (shifted, "Do not shift: the model compares its output at t with the label at t + 1 by itself.",
             "不要移位：模型自己会把 t 处的输出与 t + 1 处的标签比较。"),
        ],
        ("Write the documents one after the other. Of which tokens does nothing in their own document stand before?",
         "把文档依次写出来。哪些 token 在自己的文档里前面什么都没有？"),
        "continual/packs.py, collator, with common/speed/packing.py",
    )  # fmt: skip


# -- 2: shingles


def right_2(one, other, size):
    before, data.SHINGLE = data.SHINGLE, size
    try:
        mine, theirs = data.shingles(one), data.shingles(other)
    finally:
        data.SHINGLE = before
    return len(mine & theirs) / len(mine | theirs)


def parts(text, size):
    words = text.lower().split()
    return [tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))]


def words_only(one, other, size):
    return right_2(one, other, 1)


def of_the_first(one, other, size):
    mine, theirs = set(parts(one, size)), set(parts(other, size))
    return len(mine & theirs) / len(mine)


def of_both_added(one, other, size):
    mine, theirs = set(parts(one, size)), set(parts(other, size))
    return len(mine & theirs) / (len(mine) + len(theirs))


def task_2():
    text = "a barge shall moor at the north quay between the fourth and the ninth hour"
    cases = [("a b c d", "a b c e", 2), (text, text.replace("ninth", "tenth"), 5), (text, text.upper(), 3)]
    cases += [
        (text, "crows eat seeds", 3),
        ("a b", "a b", 5),
        (text, text.partition(" at")[0], 2),
        ("b a c a b", "a b c a b", 2),
    ]
    return Function(
        "alike",
        right_2,
        cases,
        [
            (words_only, "You compare words. Two rules of one harbour have most words in common and say different things: runs of "
             "words tell.", "你比较的是单个的词。同一港口的两条规定用词大多相同，说的却是两回事：要看连续的片段。"),
            (of_the_first, "You divide by the first document's shingles: a short text inside a long one would be the same as it. By "
             "all that either has.", "你除以第一篇的片段数：那么短文只要包含在长文里就算相同。应除以两边全部的片段。"),
            (of_both_added, "What both have is counted twice below the line. How many different shingles are there in all?",
             "两边都有的片段在分母里算了两次。不同的片段一共有多少？"),
        ],
        ("Write down both sets for the example: {a b, b c, c d} and {a b, b c, c e}.",
         "把例子中的两个集合写出来：{a b, b c, c d} 和 {a b, b c, c e}。"),
        "continual/data.py, shingles and distinct",
    )  # fmt: skip


# -- 3: replay


def right_3(domain, share, sources):
    return domain * share / (1 - share) / sources


def of_the_domain(domain, share, sources):
    return domain * share / sources


def each_the_share(domain, share, sources):
    return domain * share / (1 - share)


def all_of_it(domain, share, sources):
    return domain / (1 - share) / sources


def task_3():
    return Function(
        "replay",
        right_3,
        [(900, 0.1, 1), (900, 0.1, 2), (1000, 0.5, 1), (3000, 0.25, 4), (500, 0.0, 2)],
        [
            (of_the_domain, "That is a share of the domain's tokens. The replay is to be a share of all tokens, its own too: at a "
             "half it must be as large as the domain.", "这是领域 token 的一个比例。回放要占全部 token（包括它自己）的比例：占一半时应与领域一样多。"),
            (each_the_share, "Together they are too many: each source gives its part only.", "合起来太多了：每个来源只出自己的一份。"),
            (all_of_it, "That is all that is read, the domain too.", "这是读到的全部，领域也算在里面了。"),
        ],
        ("Let x be the tokens of replay together: x / (domain + x) = share.", "设回放的 token 总数为 x：x / (domain + x) = share。"),
        "continual/packs.py, replay",
    )  # fmt: skip


# -- 4: the form of an answer


def right_4(answers, end, marks):
    kept = [ids[-1:] == [end] and len(ids) > 1 and not marks & set(ids) for ids in answers]
    return sum(kept) / len(kept)


def ended_only(answers, end, marks):
    return sum(ids[-1:] == [end] for ids in answers) / len(answers)


def end_anywhere(answers, end, marks):
    return sum(end in ids and len(ids) > 1 and not marks & set(ids) for ids in answers) / len(answers)


def empty_too(answers, end, marks):
    return sum(ids[-1:] == [end] and not marks & set(ids) for ids in answers) / len(answers)


def marks_too(answers, end, marks):
    return sum(ids[-1:] == [end] and len(ids) > 1 for ids in answers) / len(answers)


def count(answers, end, marks):
    return right_4(answers, end, marks) * len(answers)


def task_4():
    some = [[7, 2], [7, 8], [2], [7, 1, 7, 2], [8, 9, 2]]
    return Function(
        "share",
        right_4,
        [(some, 2, {1}), (some[:4], 2, {1}), ([[], [7, 2]], 2, {1}), ([[7, 2, 7]], 2, {1}), ([[7, 8, 2], [3, 2]], 2, {1, 3})],
        [
            (ended_only, "Ended they did. An empty answer, or one that plays the user's part, ended as well.",
             "都结束了。但空的回答，或者替用户说话的回答，也是结束的。"),
            (empty_too, "An end alone says nothing.", "只有一个结束符，什么也没说。"),
            (marks_too, "An answer that opens another turn has run on.", "又开了一轮的回答是写过头了。"),
            (end_anywhere, "An end in the middle is no end: look at the last id.", "中间的结束符不是结尾：看最后一个 id。"),
            (count, "That is how many. Which share of all?", "这是个数。占全部的比例是多少？"),
        ],
        ("Go through the four answers of the example by hand: one of them keeps its form.",
         "把例子中的四个回答过一遍：只有一个保持了形式。"),
        "continual/measure.py, in_chat_form",
    )  # fmt: skip


# -- 5: padding


def padding():
    tokenizer = Tokenizer()
    lines = (ROOT / "continual" / "sample" / "everyday.jsonl").read_text("utf-8").splitlines()
    lengths = [min(256, len(tokenizer.encode(json.loads(line)["text"])) + 1) for line in lines]
    return 100 * (1 - sum(lengths) / 256 / len(lengths))


def task_5():
    return Number(
        padding,
        6,
        [
            ((0, 50), "Count the words of one document, and its full stops.", "数一数一篇文档有多少个词和句号。"),
            ((50, 70), "That would need documents of a hundred tokens.", "那样的话每篇文档得有一百来个 token。"),
            ((95, 100), "That would need documents of ten tokens.", "那样的话每篇文档只有十来个 token。"),
        ],
        ("One document, one end; the rest of 256 is padding.", "一篇文档加一个结束符，256 中其余的都是填充。"),
        "continual/packs.py, pack",
    )  # fmt: skip
