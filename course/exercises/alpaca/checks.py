"""What is right in the exercises of alpaca, and the usual mistakes."""

import json

import prompt
import train_plain_trainer
from check import ROOT, Function, Number
from toy import Tokenizer

TOKENIZER = Tokenizer()


def tokenize(text):
    return TOKENIZER.encode(text)


# -- 1: labels of a chat


def first_turn_only(ids, header, end):
    start = next(i for i in range(len(ids)) if ids[i : i + len(header)] == header) + len(header)
    stop = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
    return [-100] * start + ids[start:stop] + [-100] * (len(ids) - stop)


def all_from_the_first_header(ids, header, end):
    start = next(i for i in range(len(ids)) if ids[i : i + len(header)] == header) + len(header)
    return [-100] * start + ids[start:]


def without_end(ids, header, end):
    right = train_plain_trainer.assistant_labels(ids, header, end)
    return [-100 if label == end else label for label in right]


def with_header(ids, header, end):
    made = train_plain_trainer.assistant_labels(ids, header, end)
    for i in range(len(ids)):
        if ids[i : i + len(header)] == header:
            made[i : i + len(header)] = header
    return made


def shifted(ids, header, end):
    return train_plain_trainer.assistant_labels(ids, header, end)[1:] + [-100]


def task_1():
    one = [1, 30, 40, 41, 2, 9, 1, 31, 50, 51, 2, 9]
    two = one + [1, 30, 42, 2, 9, 1, 31, 52, 53, 54, 2, 9]
    cases = [(ids, [1, 31], 2) for ids in (one, two, two[:-3], one[:5], [1, 31, 2, 1, 31, 60, 2])]
    return Function(
        "labels",
        train_plain_trainer.assistant_labels,
        cases,
        [
            (first_turn_only, "The first answer is right. There are more: go on looking behind its end token.",
             "第一个回答是对的。后面还有：请从它的结束 token 之后继续找。"),
            (all_from_the_first_header, "The user speaks again after the first answer, and you train on that, too. Where does an "
             "answer stop?", "第一个回答之后用户又说话了，你把它也算进去了。一个回答到哪里为止？"),
            (without_end, "The text is right, the end token is missing. Who shall teach the model to stop?",
             "正文对了，少了结束 token。没有它，模型从哪里学会停下来？"),
            (with_header, "The header is given to the model at inference; it never writes it. Begin behind it.",
             "推理时 header 是给定的，模型从不自己写它。从它后面开始。"),
            (shifted, "Do not shift: the model compares its output at t with the label at t + 1 by itself.",
             "不要移位：模型自己会把 t 处的输出与 t + 1 处的标签比较。"),
        ],
        ("Compare yours with ids, place by place: which tokens does the assistant write?",
         "把你的结果和 ids 逐个位置对照：哪些 token 是助手写的？"),
        "alpaca/train_plain_trainer.py, assistant_labels",
    )  # fmt: skip


# -- 2: prompt and answer


def right_2(tokenize, prompt_text, answer, end):
    template = dict(prompt_template="{instruction}", prompt_template_short="{instruction}")
    row = {"instruction": prompt_text, "input": "", "output": answer}
    ids, labels = prompt.encode(TOKENIZER, [row], template, loss_on="answer")
    return ids[0], labels[0]


def tokenized_together(tokenize, prompt_text, answer, end):
    ids, count = [*tokenize(prompt_text + answer), end], len(tokenize(prompt_text))
    return ids, [-100] * count + ids[count:]


def no_end(tokenize, prompt_text, answer, end):
    one, two = tokenize(prompt_text), tokenize(answer)
    return one + two, [-100] * len(one) + two


def end_not_counted(tokenize, prompt_text, answer, end):
    ids, labels = right_2(tokenize, prompt_text, answer, end)
    return ids, labels[:-1] + [-100]


def zeros(tokenize, prompt_text, answer, end):
    ids, labels = right_2(tokenize, prompt_text, answer, end)
    return ids, [0 if label == -100 else label for label in labels]


def answer_only(tokenize, prompt_text, answer, end):
    ids, labels = right_2(tokenize, prompt_text, answer, end)
    return ids, [label for label in labels if label != -100]


def task_2():
    texts = [
        ("### Response:\n", "It floats."),
        ("### Response:\n", "\n    return x"),
        ("Add 1 and 2. ", "3"),
        ("Q: why? A:", ""),
    ]
    return Function(
        "encode",
        right_2,
        [(tokenize, *pair, 2) for pair in texts],
        [
            (tokenized_together, "Where the answer begins with a line break, it melts with the prompt's last one into a token "
             "that the model never sees at inference. Tokenize the two apart.",
             "回答以换行开头时，会和提示词末尾的换行合成一个 token，而推理时模型见不到它。请把两段分开分词。"),
            (no_end, "The end token is missing: such a model talks on until max_new_tokens.",
             "少了结束 token：这样的模型会一直说到 max_new_tokens。"),
            (end_not_counted, "The end token is there, but its label is -100: the loss skips it, and nobody learns to stop.",
             "结束 token 在，但标签是 -100：损失跳过了它，模型学不会停。"),
            (zeros, "0 is a token like any other, and the loss would count it. What does the loss skip?",
             "0 也是一个普通的 token，损失会把它算进去。损失跳过的是哪个数？"),
            (answer_only, "Labels must be as long as ids: one for each token.", "标签必须和 ids 一样长：每个 token 一个。"),
        ],
        ("Decode your ids in your head: prompt, answer, end token. Then the labels: which of these does the model write?",
         "把 ids 还原看看：提示词、回答、结束 token。再看标签：其中哪些是模型写的？"),
        "alpaca/prompt.py, encode",
    )  # fmt: skip


# -- 3: packing


def right_3(rows):
    from common.speed import packing

    batch = packing.collator(None, True, "hf")(rows)
    names = dict(input_ids="input_ids", labels="labels", position_ids="position_ids", cu_seq_lens_q="starts")
    return {name: batch[key].flatten().tolist() for key, name in names.items()}


def positions_run_on(rows):
    made = right_3(rows)
    return made | {"position_ids": list(range(len(made["input_ids"])))}


def first_label_kept(rows):
    return right_3(rows) | {"labels": [label for row in rows for label in row["labels"]]}


def no_last_end(rows):
    made = right_3(rows)
    return made | {"starts": made["starts"][:-1]}


def lengths_for_starts(rows):
    return right_3(rows) | {"starts": [len(row["input_ids"]) for row in rows]}


def task_3():
    def row(*ids, skipped=0):
        return {"input_ids": list(ids), "labels": [-100] * skipped + list(ids[skipped:])}

    cases = [
        ([row(5, 6, 7), row(8, 9)],),
        ([row(5, 6, 7, 8, skipped=2)],),
        ([row(4), row(5, 6, skipped=1), row(7, 8, 9)],),
    ]
    return Function(
        "pack",
        right_3,
        cases,
        [
            (positions_run_on, "Each row is a text of its own: its first token has position 0.",
             "每一行是独立的文本：它的第一个 token 位置是 0。"),
            (first_label_kept, "The loss predicts label t from token t - 1. For a row's first label that is the last token of another "
             "row: skip it.", "损失用第 t - 1 个 token 预测第 t 个标签。每行的第一个标签前面是别的行的最后一个 token：应当跳过。"),
            (no_last_end, "The kernel wants the end of the last row as well: one number more than there are rows.",
             "计算核还需要最后一行的终点：比行数多一个数。"),
            (lengths_for_starts, "These are lengths. Wanted are the places where rows start, from 0, and where the last one ends.",
             "这些是长度。需要的是各行的起点（从 0 开始）和最后一行的终点。"),
        ],
        ("Lay two short rows end to end on paper, and write position and label under each token.",
         "在纸上把两行短数据首尾相接，在每个 token 下面写出位置和标签。"),
        "common/speed/packing.py, collator; transformers' DataCollatorWithFlattening",
    )  # fmt: skip


# -- 4: padding


def right_4(rows, pad):
    return {name: tensor.tolist() for name, tensor in train_plain_trainer.collate(rows, pad).items()}


def mask_by_pad(rows, pad):
    made = right_4(rows, pad)
    return made | {"attention_mask": [[int(token != pad) for token in row] for row in made["input_ids"]]}


def labels_padded_with_pad(rows, pad):
    longest = max(len(row["labels"]) for row in rows)
    return right_4(rows, pad) | {"labels": [row["labels"] + [pad] * (longest - len(row["labels"])) for row in rows]}


def on_the_left(rows, pad):
    made, longest = {}, max(len(row["input_ids"]) for row in rows)
    for name, fill in (("input_ids", pad), ("labels", -100)):
        made[name] = [[fill] * (longest - len(row[name])) + row[name] for row in rows]
    lengths = [len(row["input_ids"]) for row in rows]
    return made | {"attention_mask": [[0] * (longest - each) + [1] * each for each in lengths]}


def end_masked_in_labels(rows, pad):
    made = right_4(rows, pad)
    return made | {"labels": [[-100 if label == pad else label for label in row] for row in made["labels"]]}


def task_4():
    def row(*ids, skipped=0):
        return {"input_ids": list(ids), "labels": [-100] * skipped + list(ids[skipped:])}

    cases = [([row(5, 6, 7, 2, skipped=2), row(8, 2)], 0), ([row(5, 6, 7, 2, skipped=2), row(8, 2, skipped=1), row(9, 9, 2)], 2),
             ([row(4, 2)], 0)]  # fmt: skip
    return Function(
        "collate",
        right_4,
        cases,
        [
            (mask_by_pad, "Where pad and end token are one, `ids != pad` hides real end tokens. The lengths are known: use them.",
             "填充 token 与结束 token 相同时，`ids != pad` 会把真正的结束 token 也遮住。长度是已知的：用长度。"),
            (labels_padded_with_pad, "The loss would count the padding. Which label does it skip?", "这样损失会把填充也算进去。它跳过的是哪个标签？"),
            (on_the_left, "Padding on the left is for generation. In training rows are filled up on the right.",
             "左填充用于生成。训练时在右边填充。"),
            (end_masked_in_labels, "You took the end token's label away because it looks like padding. Then nobody learns to stop.",
             "结束 token 看起来像填充，它的标签被你去掉了。这样模型学不会停。"),
        ],
        ("Three lists of equally long rows. What stands at the filled places of each?", "三个列表，各行等长。填充的位置上分别放什么？"),
        "alpaca/train_plain_trainer.py, collate",
    )  # fmt: skip


# -- 5: what the loss counts


def counted():
    lines = (ROOT / "alpaca" / "sample" / "alpaca.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    ids, labels = prompt.encode(TOKENIZER, rows, loss_on="answer")
    return 100 * sum(label != -100 for row in labels for label in row) / sum(map(len, ids))


def task_5():
    return Number(
        counted,
        6,
        [
            ((60, 100), "Look at one whole row: how long are the two sentences before the instruction, and how long is the answer?",
             "完整地看一行：指令前面那两句话有多长，回答有多长？"),
            ((40, 60), "Half would need an answer as long as the template, the instruction and the input together.",
             "要占一半，回答得和模板、指令、输入加起来一样长。"),
        ],
        ("Take a row of the sample, write it into the template, and count words.", "取样例中的一行，套进模板，数一数词。"),
        "alpaca/train.py --loss_on, and prompt.py, encode",
    )  # fmt: skip
