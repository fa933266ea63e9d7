"""What is right in the exercises of preference, and the usual mistakes. torch is imported where it is needed: not in 4."""

import math
from types import SimpleNamespace

import dpo
import kto
import orpo
from check import Function, Number

# -- 1: the loss of DPO


def right_1(chosen, rejected, ref_chosen, ref_rejected, beta):
    import torch

    sides = [torch.tensor(each, dtype=torch.float64) for each in (chosen + rejected, ref_chosen + ref_rejected)]
    return dpo.dpo_loss(*sides, None, beta)[0]


def no_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    return right_1(chosen, rejected, [0.0] * len(chosen), [0.0] * len(chosen), beta)


def sides_swapped(chosen, rejected, ref_chosen, ref_rejected, beta):
    return right_1(rejected, chosen, ref_rejected, ref_chosen, beta)


def beta_outside(chosen, rejected, ref_chosen, ref_rejected, beta):
    return beta * right_1(chosen, rejected, ref_chosen, ref_rejected, 1.0)


def added(chosen, rejected, ref_chosen, ref_rejected, beta):
    return right_1(chosen, rejected, [-each for each in ref_chosen], [-each for each in ref_rejected], beta)


def overflows(chosen, rejected, ref_chosen, ref_rejected, beta):
    sides = zip(chosen, rejected, ref_chosen, ref_rejected, strict=True)
    return [math.log(1 + math.exp(-beta * ((c - rc) - (r - rr)))) for c, r, rc, rr in sides]


def task_1():
    some = [-10.0, -31.0, -55.0], [-12.0, -30.0, -70.0], [-11.0, -33.0, -50.0], [-12.5, -35.0, -62.0]
    cases = [
        ([-10.0], [-12.0], [-10.0], [-12.0], 0.1),
        (*some, 0.1),
        (*some, 2.0),
        ([-2500.0], [-100.0], [-100.0], [-100.0], 0.5),
    ]
    return Function(
        "losses",
        right_1,
        cases,
        [
            (no_reference, "The reference is missing: an answer that was likely before training is paid for what it did not learn.",
             "少了参考模型：训练之前就很可能的回答，会为它没有学到的东西得到奖励。"),
            (sides_swapped, "Yours is small where the rejected answer gained more. Which difference shall grow?",
             "rejected 涨得更多时，你的损失反而小。哪个差应当变大？"),
            (beta_outside, "beta belongs inside: it scales the rewards. Outside it only scales the gradient, like a learning rate.",
             "beta 在里面：它缩放奖励。放在外面只缩放梯度，和学习率一样。"),
            (added, "A ratio of probabilities is a difference of logs: you add the reference's.", "概率之比是对数之差：你把参考模型的加上去了。"),
            (overflows, "Right until the margin is -1000: exp() of a large number overflows. Which form has only small exponents?",
             "差到 -1000 之前都对：exp() 会溢出。怎样改写，指数才不会大？"),
        ],
        ("When policy and reference are equal, every loss is log 2, whatever the answers. Is yours?",
         "策略与参考模型相同时，不论什么回答，损失都是 log 2。你的呢？"),
        "preference/dpo.py, dpo_loss",
    )  # fmt: skip


# -- 2: the log-probability of an answer


def right_2(logprobs, ids, start):
    """pairs.logprobs with a model whose hidden states are the log-probabilities, and a head that changes nothing."""
    import torch

    import pairs

    table = torch.tensor(logprobs)[None]
    labels = torch.tensor([[-100] * start + ids[start:]])
    batch = {"input_ids": torch.tensor([ids]), "labels": labels, "lengths": [len(ids) - start]}
    head = torch.nn.Linear(table.shape[-1], table.shape[-1], bias=False)
    head.weight.data = torch.eye(table.shape[-1])

    def model(**_):
        return SimpleNamespace(logits=head(table))

    return float(pairs.logprobs(model, batch, head)[0].detach())


def not_shifted(logprobs, ids, start):
    return sum(logprobs[t][ids[t]] for t in range(start, len(ids)))


def with_prompt(logprobs, ids, start):
    return right_2(logprobs, ids, 1)


def mean_of_tokens(logprobs, ids, start):
    return right_2(logprobs, ids, start) / (len(ids) - start)


def without_end(logprobs, ids, start):
    return sum(logprobs[t - 1][ids[t]] for t in range(start, len(ids) - 1))


def without_first(logprobs, ids, start):
    return sum(logprobs[t - 1][ids[t]] for t in range(start + 1, len(ids)))


def task_2():
    import torch

    torch.manual_seed(0)
    table = torch.randn(7, 5).mul(2).log_softmax(-1).tolist()
    cases = [(table[:3], [0, 1, 2], 1), (table, [4, 0, 3, 1, 1, 0, 2], 3), (table[:5], [3, 3, 0, 4, 2], 4)]
    return Function(
        "answer_logprob",
        right_2,
        cases,
        [
            (not_shifted, "Row t of the table is about the token AFTER place t. Which row judges the answer's first token?",
             "表的第 t 行说的是位置 t 之后的 token。回答的第一个 token 由哪一行判断？"),
            (with_prompt, "The prompt is counted, too. The model did not write it.", "提示词也算进去了。它不是模型写的。"),
            (mean_of_tokens, "That is the mean per token, as SimPO takes it. Here the sum is wanted, which is a probability.",
             "这是每个 token 的平均，SimPO 用的是它。这里要的是和，它才是概率。"),
            (without_end, "The end token is part of the answer: a preference is also one about where to stop.",
             "结束符是回答的一部分：偏好也包括在哪里停。"),
            (without_first, "The answer's first token is missing: the prompt's last place predicts it.",
             "少了回答的第一个 token：它由提示词的最后一个位置预测。"),
        ],
        ("Write under each token of the answer which row of the table says how likely it was.",
         "在回答的每个 token 下面写出：它的概率在表的哪一行。"),
        "preference/pairs.py, logprobs",
        1e-5,
    )  # fmt: skip


# -- 3: ORPO's odds


def right_3(chosen, chosen_tokens, rejected, rejected_tokens):
    import torch

    policy = torch.tensor([chosen, rejected], dtype=torch.float64)
    return orpo.orpo_loss(policy, None, torch.tensor([chosen_tokens, rejected_tokens]), 1.0)[1][0]


def of_the_sum(chosen, chosen_tokens, rejected, rejected_tokens):
    return right_3(chosen, 1, rejected, 1)


def ratio_of_means(chosen, chosen_tokens, rejected, rejected_tokens):
    return chosen / chosen_tokens - rejected / rejected_tokens


def added_odds(chosen, chosen_tokens, rejected, rejected_tokens):
    one, two = chosen / chosen_tokens, rejected / rejected_tokens
    return one + math.log(-math.expm1(one)) - two - math.log(-math.expm1(two))


def one_less_p(chosen, chosen_tokens, rejected, rejected_tokens):
    one, two = chosen / chosen_tokens, rejected / rejected_tokens
    return one - math.log(1 - math.exp(one)) - two + math.log(1 - math.exp(two))


def no_log(chosen, chosen_tokens, rejected, rejected_tokens):
    return math.exp(float(right_3(chosen, chosen_tokens, rejected, rejected_tokens)))


def task_3():
    cases = [(-4.0, 4, -10.0, 5), (-30.0, 12, -8.0, 9), (-2.0, 2, -1.0, 1), (-1e-17, 1, -3.0, 2)]
    return Function(
        "log_odds_ratio",
        right_3,
        cases,
        [
            (of_the_sum, "P is the geometric mean per token: divide each log p(y|x) by its own number of tokens first.",
             "P 是每个 token 的几何平均：先把每个 log p(y|x) 除以自己的 token 数。"),
            (ratio_of_means, "That is the log ratio of the two P. Odds have 1 - P below.", "这是两个 P 之比的对数。几率的分母是 1 - P。"),
            (added_odds, "Odds are P divided by 1 - P: mind the sign of its log.", "几率是 P 除以 1 - P：注意它的对数的符号。"),
            (one_less_p, "Right until P is near 1: there exp() rounds to 1, and 1 - 1 has no log. math.expm1 keeps what is left.",
             "P 接近 1 之前都对：那里 exp() 舍入成 1，1 - 1 没有对数。math.expm1 能保住剩下的部分。"),
            (no_log, "That is the ratio; its log is wanted.", "这是比值；要的是它的对数。"),
        ],
        ("Two answers that are equally likely per token have a log odds ratio of 0. Do yours?",
         "每个 token 同样可能的两个回答，对数几率比是 0。你的呢？"),
        "preference/orpo.py, orpo_loss",
    )  # fmt: skip


# -- 4: mismatched rows


def right_4(prompts, answers):
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "completion": answer}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return [row["mismatched"] for row in kto.mismatched(rows)]


def row_before(prompts, answers):
    return [answers[i - 1] for i in range(len(answers))]


def own_answers(prompts, answers):
    return answers


def row_behind(prompts, answers):
    return answers[1:] + answers[:1]


def other_prompt_ahead(prompts, answers):
    count = len(prompts)
    return [
        next(answers[(i + k) % count] for k in range(1, count) if prompts[(i + k) % count] != prompts[i])
        for i in range(count)
    ]


def task_4():
    return Function(
        "mismatched",
        right_4,
        [
            (["a", "b", "c"], ["1", "2", "3"]),
            (["a", "a", "b"], ["1", "2", "3"]),
            (["a", "b", "b", "b", "c", "a", "a"], ["1", "2", "3", "4", "5", "6", "7"]),
        ],
        [
            (row_before, "Two answers to one question stand side by side in pairs: then the row before asks the same, and its answer fits. "
             "Go on.", "成对的数据里，同一问题的两个回答挨在一起：前一行问的相同，它的回答是配得上的。继续往前找。"),
            (own_answers, "These are the rows' own answers: they say how well it learned, and not how far it moved.",
             "这是各行自己的回答：说明学得多好，而不是走了多远。"),
            (row_behind, "That is the answer of the row behind; wanted is the one before. And what if it asks the same?",
             "这是后一行的回答；要的是前一行的。而且，问题相同时怎么办？"),
            (other_prompt_ahead, "Each answer belongs to another question, good. The task looks backwards: the row before comes first.",
             "每个回答都来自别的问题，很好。但题目要求往前找：先看前一行。"),
        ],
        ("Say each row aloud: is this an answer to another question? Would Python's index -1 help at the first row?",
         "逐行检查：这是别的问题的回答吗？第一行用下标 -1 会怎样？"),
        "preference/kto.py, mismatched",
    )  # fmt: skip


# -- 5: a run that goes too far


def overoptimised(pairs_drawn=400, steps=400, beta=0.1, seed=0):
    """[(KL, gold)] along a run of DPO on answers that are lengths, with one parameter: log p = log p_ref + theta log length."""
    import torch

    length = torch.arange(1, 81, dtype=torch.float64)
    reference = torch.log_softmax(-length.log() - (length / 30).log() ** 2 / (2 * 0.35**2), 0)
    gold = -(length / 12).log().abs()
    draw = torch.Generator().manual_seed(seed)
    one, two = torch.multinomial(reference.exp(), 2 * pairs_drawn, True, generator=draw).chunk(2)
    better = gold[one] > gold[two]
    rows = torch.cat([torch.where(better, one, two), torch.where(better, two, one)])
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer, course = torch.optim.Adam([theta], lr=0.05), []
    for _ in range(steps):
        policy = torch.log_softmax(reference + theta * length.log(), 0)
        p = policy.detach().exp()
        course.append((float(p @ (policy.detach() - reference)), float(p @ gold)))
        optimizer.zero_grad()
        dpo.dpo_loss(policy[rows], reference[rows], None, beta)[0].mean().backward()
        optimizer.step()
    return course


def kl_at_the_turn():
    return max(overoptimised(), key=lambda point: point[1])[0]


def task_5():
    return Number(
        kl_at_the_turn,
        0.75,
        [
            ((-1, 0.5), "There it has hardly moved: most answers are still far too long, and gold is still rising.",
             "那里它几乎还没动：多数回答仍然太长，gold 还在上升。"),
            ((12, 1000), "There the answers are a few words long. The loss still falls, and every pair says: shorter.",
             "那里的回答只有几个词了。损失还在降，每一对都说：再短一点。"),
        ],
        ("Where do most of the policy's answers have 12 words? The reference's log-lengths spread by 0.35 around 30 words; a shift of "
         "a normal distribution by d costs d² / (2 · 0.35²) nats.",
         "策略的多数回答在哪里是 12 个词？参考模型的长度取对数后以 30 个词为中心，标准差 0.35；正态分布平移 d 的 KL 是 d² / (2 · 0.35²) nat。"),
        "preference/dpo.py --demo --beta 0.01 --learning_rate 3e-3, and the lesson's plot",
    )  # fmt: skip
