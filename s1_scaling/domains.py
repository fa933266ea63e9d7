"""The five domains of the made-up tasks: how each is asked, and how its steps are worked out, right or with a slip.

A slip is a mistake that a person makes: a carry forgotten, a letter overlooked, a month of the wrong length.
"""

LEVELS = (1, 2, 3)
WORDS = """able acid also apple april arena arrow award bacon badge baker banana basket battery beach bear berry bicycle
bitter blanket blossom bottle bread bridge bubble bucket butter button cabbage camera candle carpet carrot castle cattle
cheese cherry chicken circle coffee collar colour common copper cotton cousin cradle crater cricket curtain dagger daily
dance dinner doctor dollar donkey dragon drawer dress eagle earth engine errand error fabric falcon farmer father feather
fellow ferry flower forest garden garlic giraffe glass goose grammar grass green guitar hammer harbour harvest horror
hotel hunter hurry island jacket jelly jungle kettle kitchen ladder lantern laptop lemon letter lizard lobster magnet
marble market meadow mirror monkey mother mountain muffin narrow needle noodle nurse ocean onion orange orchard oyster
paper parrot pepper pillow planet pocket potato puppy purple puzzle rabbit raccoon rocket rubber saddle salmon school
season shadow silver singer sister spider spoon squirrel station street summer sunset supper sweater table teacher
temple terrace thunder ticket tiger tomato tunnel turtle umbrella valley velvet village violin wallet window winter
wizard yellow zebra accident aeroplane anniversary assessment bookkeeper breakfast butterfly cinnamon committee
dictionary different dinosaur disappear elephant embarrass excellent grasshopper happiness intelligent kangaroo
mississippi necessary newspaper occurrence parallel pineapple possession professor restaurant successful tomorrow
watermelon wheelbarrow""".split()  # noqa: SIM905
# Other words for the test: counting has to carry over, not the words.
TEST_WORDS = """actor amber angel anger bottom cannon cereal coral corner crayon danger dessert dozen eleven essay finger
follow ginger gossip grape hidden honey index jewel kitten little lorry mango merry middle nectar office olive otter
pasta pebble pizza pretty radar raspberry river robot runner sorry sugar tennis tulip walnut address adventure blackberry
blueberry calendar chocolate cucumber furniture hippopotamus interrupt lighthouse millennium mushroom profession
questionnaire strawberry suggestion telephone tennessee university""".split()  # noqa: SIM905
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = dict(March=31, April=30, May=31, June=30, July=31, August=31, September=30, October=31, November=30)
UNITS = (
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7),
    ("feet", "inches", 12), ("metres", "centimetres", 100), ("kilograms", "grams", 1000), ("kilometres", "metres", 1000),
)  # fmt: skip

# domain -> level -> split -> how it is asked. Training and test share no sentence.
ASKED = {
    "sums": {
        1: {"train": ("What is {a} + {b}?", "Add {a} and {b}."), "test": ("Find the sum of {a} and {b}.",)},
        2: {"train": ("What is {a} + {b}?", "Add {a} and {b}."), "test": ("Find the sum of {a} and {b}.",)},
        3: {
            "train": ("What is {a} + {b} + {c}?", "Add {a}, {b} and {c}."),
            "test": ("Find the sum of {a}, {b} and {c}.",),
        },
    },
    "letters": {
        level: {
            "train": (
                "How many times does the letter {letter} occur in the word {word}?",
                'Count the letter {letter} in "{word}".',
            ),
            "test": ("How many {letter} in {word}?",),
        }
        for level in LEVELS
    },
    "dates": {
        1: {
            "train": ("Today is {day}. Which day is it {n} days later?", "Which weekday comes {n} days after a {day}?"),
            "test": ("If a letter sent on a {day} takes {n} days, on which weekday does it arrive?",),
        },
        2: {
            "train": ("Which date is {n} days after {month} {d}?", "It is {month} {d}. What is the date {n} days later?"),
            "test": ("A parcel leaves on {month} {d} and takes {n} days. On which date does it arrive?",),
        },
        3: {
            "train": (
                "How many days are there from {month} {d} to {last} {e} of the same year?",
                "Count the days from {month} {d} to {last} {e}.",
            ),
            "test": ("A trip begins on {month} {d} and ends on {last} {e}. How many days lie between?",),
        },
    },
    "units": {
        1: {
            "train": ("How many {small} are {a} {big} and {b} {small}?", "Convert {a} {big} {b} {small} to {small}."),
            "test": ("Write {a} {big} and {b} {small} in {small} only.",),
        },
        2: {
            "train": ("How many {big} and {small} are {n} {small}?", "Convert {n} {small} to {big} and {small}."),
            "test": ("Write {n} {small} in {big} and {small}.",),
        },
        3: {
            "train": (
                "Add {a} {big} {b} {small} and {c} {big} {d} {small}.",
                "What are {a} {big} {b} {small} plus {c} {big} {d} {small}?",
            ),
            "test": ("One part takes {a} {big} {b} {small}, the other {c} {big} {d} {small}. What is the total?",),
        },
    },
    "clock": {
        1: {
            "train": ("A film starts at {time} and lasts {m} minutes. When does it end?", "It is {time}. What time is it in {m} minutes?"),
            "test": ("The bus leaves at {time} and needs {m} minutes. When does it arrive?",),
        },
        2: {
            "train": (
                "A film starts at {time} and lasts {h} hours {m} minutes. When does it end?",
                "It is {time}. What time is it in {h} hours {m} minutes?",
            ),
            "test": ("The train leaves at {time} and needs {h} hours {m} minutes. When does it arrive?",),
        },
        3: {
            "train": (
                "A film starts at {time}, lasts {h} hours {m} minutes and has a break of {b} minutes. When does it end?",
                "It is {time}. What time is it after {h} hours {m} minutes and another {b} minutes?",
            ),
            "test": ("Ann leaves at {time}, walks {b} minutes and rides {h} hours {m} minutes. When does she arrive?",),
        },
    },
}  # fmt: skip


# -- the makers, one per domain: (what the sentence needs, look); look(slip) -> (lines, answer)


def add_in_columns(a, b, slip):
    """(a line that adds two numbers digit by digit, the sum). slip: the first carry is forgotten, or a digit is off."""
    left, right = str(a)[::-1], str(b)[::-1]
    steps, digits, carry = [], "", 0
    for place in range(max(len(left), len(right))):
        parts = [text[place] for text in (left, right) if place < len(text)] + (["1"] if carry else [])
        total = sum(map(int, parts))
        step = " + ".join(parts) + f" = {total}" if len(parts) > 1 else parts[0]
        carry = total // 10
        step += f", write {total % 10}" + (", carry 1" if carry and not slip else "")
        if carry and slip:
            carry = slip = 0
        digits = str(total % 10) + digits
        steps.append(step)
    result = int(("1" if carry else "") + digits) + bool(slip)
    return f"{a} + {b}: {'; '.join(steps)}. {a} + {b} = {result}.", result


def sums(draw, level):
    low, high, count = {1: (11, 99, 2), 2: (101, 999, 2), 3: (101, 999, 3)}[level]
    numbers = [draw.randint(low, high) for _ in range(count)]

    def look(slip):
        total, lines = numbers[0], []
        for number in numbers[1:]:
            line, total = add_in_columns(total, number, slip)
            lines, slip = [*lines, line], False
        return lines, str(total)

    return dict(zip("abc", numbers, strict=False)), look


def letters(draw, level, words):
    low, high = {1: (1, 5), 2: (6, 8), 3: (9, 99)}[level]
    word = draw.choice([word for word in words if low <= len(word) <= high])
    # Letters that occur twice would be rare otherwise, and 1 a good guess.
    letter = max(draw.choices(word, k=3), key=word.count)

    def look(slip):
        seen, marks = 0, []
        for place, each in enumerate(word):
            counts = each == letter and not (slip and letter not in word[place + 1 :])
            seen += counts
            marks.append(f"{each} {seen}" if counts else each)
        return [f"{word}: {' '.join(word)}.", ", ".join(marks) + ".", f"{letter} occurs {seen} times."], str(seen)

    return dict(letter=letter, word=word), look


def dates(draw, level):
    if level == 1:
        day, n = draw.randrange(7), draw.randint(8, 40)

        def look(slip):
            left = n % 7 + bool(slip)
            walk = [WEEK[(day + step) % 7] + f" {step}" for step in range(1, left + 1)]
            lines = [f"{n} = {n // 7} x 7 + {left}.", ", ".join([WEEK[day], *walk]) + "."]
            return lines, WEEK[(day + left) % 7]

        return dict(day=WEEK[day], n=n), look
    names = list(MONTHS)
    month = draw.randrange(6)
    d = draw.randint(2, 28)
    if level == 2:
        n = draw.randint(MONTHS[names[month]] - d + 1, 60)

        def look(slip):
            day, at = d + n, month
            lines = [f"{d} + {n} = {day}."]
            while True:
                length = MONTHS[names[at]] + (31 - MONTHS[names[at]] or -1 if slip else 0)
                slip = False
                if day <= length:
                    return [*lines, f"It is {names[at]} {day}."], f"{names[at]} {day}"
                lines.append(f"{names[at]} has {length} days: {day} - {length} = {day - length}.")
                day, at = day - length, at + 1

        return dict(month=names[month], d=d, n=n), look
    last, e = month + draw.randint(1, 3), draw.randint(2, 28)

    def look(slip):
        length = MONTHS[names[month]] + (31 - MONTHS[names[month]] or -1 if slip else 0)
        total = length - d
        lines = [f"{names[month]} has {length} days: {length} - {d} = {total}."]
        for at in range(month + 1, last + 1):
            more = e if at == last else MONTHS[names[at]]
            lines.append(f"{names[at]}: {total} + {more} = {total + more}.")
            total += more
        return lines, str(total)

    return dict(month=names[month], d=d, last=names[last], e=e), look


def units(draw, level):
    big, small, factor = draw.choice(UNITS)
    a, c = draw.randint(2, 9), draw.randint(2, 9)
    b, d = draw.randint(2, factor - 1), draw.randint(2, factor - 1)

    def look(slip):
        if level == 1:
            product = a * factor - (factor if slip else 0)
            return [f"{a} x {factor} = {product}.", f"{product} + {b} = {product + b}."], str(product + b)
        if level == 2:
            rest = b + (10 if factor > 20 else 1) * bool(slip)
            lines = [f"1 {big} = {factor} {small}.", f"{a} x {factor} = {a * factor}, {n} - {a * factor} = {rest}."]
            return lines, f"{a} {big} {rest} {small}"
        sum_small, sum_big = b + d, a + c
        lines = [f"{b} + {d} = {sum_small} {small}."]
        carry = sum_small >= factor
        if carry:
            lines.append(f"{sum_small} - {factor} = {sum_small - factor}" + ("." if slip else ", carry 1."))
            sum_small -= factor
        carry = carry and not slip
        lines.append(f"{a} + {c}{' + 1' if carry else ''} = {sum_big + carry} {big}.")
        return lines, f"{sum_big + carry} {big} {sum_small} {small}"

    n = a * factor + b
    return dict(big=big, small=small, a=a, b=b, c=c, d=d, n=n), look


def clock(draw, level):
    hour, minute = draw.randint(6, 14), draw.randint(1, 59)
    h, m, b = draw.randint(1, 5), draw.randint(11, 58), draw.randint(11, 58)

    def look(slip):
        hours, minutes, lines = hour, minute, []
        if level > 1:
            lines.append(f"{hour} + {h} = {hour + h} hours.")
            hours += h
        for more in [m, b][: 2 if level == 3 else 1]:
            lines.append(f"{minutes} + {more} = {minutes + more} minutes.")
            minutes += more
            if minutes >= 60:
                lines.append(
                    f"{minutes} - 60 = {minutes - 60}" + ("." if slip else f", carry 1: {hours} + 1 = {hours + 1}.")
                )
                minutes, hours, slip = minutes - 60, hours + (not slip), False
        return lines, f"{hours}:{minutes:02}"

    return dict(time=f"{hour}:{minute:02}", h=h, m=m, b=b), look
