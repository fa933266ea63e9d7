"""What goes wrong in RL again and again, seen in a run's own numbers: six rules, each a function that can be read and tested.

logs: the run's log lines, oldest first, under TRL's names, with accuracy, the share of right samples. A rule returns {} as
long as it has nothing to say, else the numbers that say why. One step of a few dozen samples says little, so medians are
compared: those of the newest logs with those of the run's first ones. A run that is too short for both is not judged.
What a rule sees, what it usually means and what to try stand in TEXTS. No torch here.
"""

import math
from statistics import fmean, median

AIM = "rewards/correctness_reward_func/mean"
FIRST = 10  # logs at the start that a run is compared with
LAST = 10  # newest logs
GAIN = 0.05  # accuracy has risen: by five points at least. Medians of ten steps of 24 samples differ by less
DONE = 0.8  # share right above which equal groups and low entropy are what success looks like


def ends(logs, name, first=FIRST, last=LAST):
    """Medians of a metric over the first and the newest logs that have it; None while these would overlap."""
    values = [log[name] for log in logs if log.get(name) is not None and math.isfinite(log[name])]
    if len(values) < first + last:
        return None
    return median(values[:first]), median(values[-last:])


def lasts(logs, name, share, last):
    """Is a share over `share` in the newest logs, in the median and in the mean? One wild step moves a mean, and a share
    of four groups is so coarse that a median of ten jumps by itself; both together do neither."""
    values = [log[name] for log in logs if log.get(name) is not None and math.isfinite(log[name])][-last:]
    return median(values) > share and fmean(values) > share


def accuracies(logs, last=LAST):
    """before and after of the accuracy; 0 where it is not logged, so that it does not excuse anything."""
    return dict(zip(("before", "after"), ends(logs, "accuracy", last=last) or (0.0, 0.0), strict=True))


def length_drift(logs):
    """Completions half as long again as at first, while accuracy has not risen by 5 points; or a third shorter, while
    accuracy has fallen by 5 points or is still below 5%. Longer and righter is reasoning; shorter and as right is thrift.
    """
    if not (found := ends(logs, "completions/mean_length")):
        return {}
    early, late = found
    right = accuracies(logs)
    gain = right["after"] - right["before"]
    if late >= 1.5 * early and gain < GAIN:
        return dict(case="longer", early=early, late=late, **right)
    if late <= early / 1.5 and (gain <= -GAIN or right["after"] < GAIN):
        return dict(case="shorter", early=early, late=late, **right)
    return {}


def reward_takes_over(logs):
    """Of what the reward has gained since the first logs, correctness makes less than a tenth, accuracy less than 5 points,
    over the newest 20 logs; and the gain is a tenth of the reward at least. Names the reward that has gained most.

    Twenty logs and not ten: a model that begins without the form learns that first, and is given the time.
    """
    last = 2 * LAST
    total, right = ends(logs, "reward", last=last), accuracies(logs, last)
    gains = {}
    for name in logs[-1] if total else ():
        if name.startswith("rewards/") and name.endswith("/mean") and (found := ends(logs, name, last=last)):
            gains[name] = found[1] - found[0]
    aim, others = gains.pop(AIM, 0.0), sum(max(0.0, each) for each in gains.values())
    if not others or total[1] - total[0] < 0.1 * abs(total[1]) or right["after"] - right["before"] >= GAIN:
        return {}
    if aim >= 0.1 * (others + aim):
        return {}
    top = max(gains, key=gains.get)
    name = top.split("/")[1].removesuffix("_reward_func")
    share = gains[top] / (others + max(0.0, aim))
    return dict(top=name, share=share, early=total[0], late=total[1], **right)


def dead_groups(logs):
    """In the newest 20 logs over three quarters of the groups earn G equal rewards (advantage 0, no gradient), and fewer than
    80% of the samples are right: above that, groups that are all right are what a run is for. Runs that learn well have
    up to half."""
    last = 2 * LAST
    found, right = ends(logs, "frac_reward_zero_std", last=last), accuracies(logs, last)
    if not found or not lasts(logs, "frac_reward_zero_std", 0.75, last) or right["after"] >= DONE:
        return {}
    return dict(early=found[0], late=found[1], **right)


def dead(logs):
    """The alarm of a run that is stopped for its dead groups before `dead_groups` has enough logs to judge it."""
    early, late = (log["frac_reward_zero_std"] for log in (logs[0], logs[-1]))
    right = dict(before=logs[0].get("accuracy", 0.0), after=logs[-1].get("accuracy", 0.0))
    return dict(step=logs[-1]["step"], alarm="dead_groups", early=early, late=late, **right)


def entropy_collapse(logs):
    """Entropy below a fifth of the first logs', while accuracy has not risen by 5 points and is below 80%. It falls in every
    run that learns: to 40% where accuracy goes from 30% to 80%."""
    found, right = ends(logs, "entropy"), accuracies(logs)
    if not found or found[1] >= found[0] / 5 or right["after"] - right["before"] >= GAIN or right["after"] >= DONE:
        return {}
    return dict(early=found[0], late=found[1], **right)


def kl_jump(logs):
    """KL to the start over 0.5 nats per token in the newest 5 logs, and three times what it was in the first half of the
    run; or over 2 nats, however it got there: a run that broke at its second step has nothing whole to be compared with.
    It is 0 at step 1 and grows: the first logs alone are no measure. Judged from 8 logs on; silent with --beta 0, with
    which it is not logged."""
    values = [log["kl"] for log in logs if log.get("kl") is not None and math.isfinite(log["kl"])]
    if len(values) < 8:
        return {}
    early, late = median(values[: len(values) // 2]), median(values[-5:])
    jumped = late > 2 or late > 0.5 and late >= 3 * early
    return dict(early=early, late=late, **accuracies(logs)) if jumped else {}


def truncation(logs):
    """Over a quarter of the newest 20 logs' completions are cut off at --max_completion_length, and it is not falling: at
    least four fifths of what it was in the first logs. A model that babbles at first may learn to end."""
    last = 2 * LAST
    found = ends(logs, "completions/clipped_ratio", last=last)
    if not found or not lasts(logs, "completions/clipped_ratio", 0.25, last) or found[1] < 0.8 * found[0]:
        return {}
    return dict(early=found[0], late=found[1], **accuracies(logs, last))


ALARMS = {
    rule.__name__: rule
    for rule in (length_drift, reward_takes_over, dead_groups, entropy_collapse, kl_jump, truncation)
}

# Name, or name and case: title, what is seen, what it usually means, what to try.
TEXTS = {
    "en": {
        "length_drift longer": (
            "length drift",
            "{early:.0f} → {late:.0f} tokens per completion, accuracy {before:.0%} → {after:.0%}",
            "something pays for length itself: a reward that grows with it, or a loss that spares long wrong answers "
            "(--loss_type grpo divides each one's by its length)",
            "read the longest; mend that reward and add a test; --loss_type dr_grpo",
        ),
        "length_drift shorter": (
            "length drift",
            "{early:.0f} → {late:.0f} tokens per completion, accuracy {before:.0%} → {after:.0%}",
            "short texts get into the form more easily, so reasoning is left out",
            "--warmup_sft 20, so that the form need not be found; pay less for the form; easier problems",
        ),
        "reward_takes_over": (
            "one reward takes over",
            "reward {early:.2f} → {late:.2f}, {share:.0%} of the gain from {top}; accuracy {before:.0%} → {after:.0%}",
            "the model has found what can be earned without solving anything",
            "read what earns it; mend the rule in rewards.py and add a test, or pay less for it; if it is the form alone: "
            "--warmup_sft 20, easier problems (data.py --arithmetic N --level 1)",
        ),
        "dead_groups": (
            "dead groups",
            "in {late:.0%} of the groups all rewards are equal; accuracy {after:.0%}",
            "these groups have no advantage, so most of what is sampled teaches nothing: the problems are never right, or the "
            "samples all alike",
            "easier problems or a larger model; a larger --num_generations; --temperature 1.0",
        ),
        "entropy_collapse": (
            "entropy collapse",
            "{early:.3g} → {late:.3g} nats per token, accuracy {before:.0%} → {after:.0%}",
            "the model says the same again and again, and what is never sampled cannot be rewarded",
            "a third of --learning_rate; a higher --beta; --temperature 1.0; go back to an earlier checkpoint",
        ),
        "kl_jump": (
            "KL jump",
            "{early:.2g} → {late:.2g} nats per token away from the start",
            "the steps are too large, and the policy has left what the model can write",
            "a tenth of --learning_rate; a higher --beta; a lower --max_grad_norm; go back to an earlier checkpoint",
        ),
        "truncation": (
            "truncation",
            "{late:.0%} of the completions are cut off, {early:.0%} at first",
            "what is cut off has no answer block and earns next to nothing, so the model learns to be short, not right",
            "a larger --max_completion_length (--estimate says what fits)",
        ),
    },
    "zh": {
        "length_drift longer": (
            "长度漂移",
            "每条回答 {early:.0f} → {late:.0f} 个 token，准确率 {before:.0%} → {after:.0%}",
            "长度本身得到了奖励：某项奖励随长度增长，或损失对长的错误回答更宽容（--loss_type grpo 按每条回答的长度平均）",
            "读最长的回答；修正该奖励并补一个测试；--loss_type dr_grpo",
        ),
        "length_drift shorter": (
            "长度漂移",
            "每条回答 {early:.0f} → {late:.0f} 个 token，准确率 {before:.0%} → {after:.0%}",
            "短回答更容易符合格式，推理因此被省掉",
            "--warmup_sft 20，格式不必靠强化学习去找；降低格式奖励；换更容易的题",
        ),
        "reward_takes_over": (
            "单项奖励独大",
            "奖励 {early:.2f} → {late:.2f}，增量的 {share:.0%} 来自 {top}；准确率 {before:.0%} → {after:.0%}",
            "模型找到了不解题也能得分的办法",
            "读得分的回答；在 rewards.py 里修正规则并补一个测试，或降低该项分值；若只学会了格式：--warmup_sft 20，"
            "换更容易的题（data.py --arithmetic N --level 1）",
        ),
        "dead_groups": (
            "死组",
            "{late:.0%} 的组内 G 个奖励全部相同，准确率 {after:.0%}",
            "这些组的优势为 0，采样大多白费：题目从未答对，或样本彼此雷同",
            "换更容易的题或更大的模型；增大 --num_generations；--temperature 1.0",
        ),
        "entropy_collapse": (
            "熵坍缩",
            "每 token {early:.3g} → {late:.3g} nat，准确率 {before:.0%} → {after:.0%}",
            "模型反复说同样的话；采样不到的回答无法得到奖励",
            "--learning_rate 降到三分之一；提高 --beta；--temperature 1.0；退回较早的检查点",
        ),
        "kl_jump": (
            "KL 突增",
            "与初始模型的距离：每 token {early:.2g} → {late:.2g} nat",
            "步子太大：策略已离开模型写得通顺的文本",
            "--learning_rate 降到十分之一；提高 --beta；降低 --max_grad_norm；退回较早的检查点",
        ),
        "truncation": (
            "截断",
            "{late:.0%} 的回答被截断，开始时 {early:.0%}",
            "被截断的回答没有答案块，几乎得不到奖励，模型学会的是短而不是对",
            "增大 --max_completion_length（--estimate 给出显存放得下的值）",
        ),
    },
}
LINE = {
    "en": "ALARM, step {step}: {title}: {seen}. Usually: {means}. Try: {remedy}.",
    "zh": "警报，第 {step} 步：{title}：{seen}。通常说明：{means}。可以试试：{remedy}。",
}


def texts(alarm, lang):
    """(title, what is seen, what it usually means, what to try) of an alarm: {"step", "alarm", and its rule's numbers}."""
    key = " ".join(filter(None, (alarm["alarm"], alarm.get("case"))))
    title, seen, means, remedy = TEXTS[lang][key]
    return title, seen.format(**alarm), means, remedy


def line(alarm, lang):
    """An alarm as one line of text."""
    title, seen, means, remedy = texts(alarm, lang)
    return LINE[lang].format(step=alarm["step"], title=title, seen=seen, means=means, remedy=remedy)


def new(logs, rung):
    """Alarms that ring at the newest log and have not rung in this run: [{"step", "alarm", and the rule's numbers}]."""
    found = {name: rule(logs) for name, rule in ALARMS.items() if name not in {each["alarm"] for each in rung}}
    return [{"step": logs[-1]["step"], "alarm": name} | numbers for name, numbers in found.items() if numbers]
