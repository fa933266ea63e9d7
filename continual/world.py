"""A small made-up world in sentences: everyday text, conversations about it, and a domain that none of them mentions.

The model of the demo read the first two (pretrain.py) and never the third, the ordinances of a harbour that does not exist.
So what continued pretraining adds and what it takes away can be told apart, on a laptop. sample/ was written by

    python world.py --out NEW
"""

import argparse
import itertools
import random
from pathlib import Path

from common.files import new_file, write_lines

# kind, colour, home, food
ANIMALS = {
    "crow": ("bird", "black", "tall trees", "seeds"), "swan": ("bird", "white", "quiet lakes", "water plants"),
    "robin": ("bird", "red", "old gardens", "worms"), "heron": ("bird", "grey", "river banks", "fish"),
    "owl": ("bird", "brown", "dark barns", "mice"), "finch": ("bird", "yellow", "thorn hedges", "seeds"),
    "carp": ("fish", "golden", "warm ponds", "water plants"), "trout": ("fish", "silver", "cold streams", "flies"),
    "pike": ("fish", "green", "deep lakes", "small fish"), "eel": ("fish", "black", "muddy rivers", "worms"),
    "frog": ("small animal", "green", "wet meadows", "flies"), "newt": ("small animal", "orange", "warm ponds", "worms"),
    "toad": ("small animal", "brown", "old gardens", "beetles"), "fox": ("wild animal", "red", "sandy woods", "mice"),
    "wolf": ("wild animal", "grey", "high hills", "deer"), "badger": ("wild animal", "grey", "deep woods", "roots"),
    "hare": ("wild animal", "brown", "open fields", "grass"), "otter": ("wild animal", "brown", "river banks", "fish"),
    "deer": ("wild animal", "brown", "deep woods", "leaves"), "boar": ("wild animal", "black", "oak woods", "roots"),
    "cow": ("farm animal", "white", "open fields", "grass"), "goat": ("farm animal", "grey", "high hills", "leaves"),
    "pig": ("farm animal", "pink", "low sheds", "potatoes"), "hen": ("farm animal", "brown", "wooden coops", "corn"),
    "bee": ("insect", "golden", "hollow trees", "honey"), "ant": ("insect", "red", "sandy woods", "sugar"),
    "moth": ("insect", "grey", "dark barns", "leaves"), "wasp": ("insect", "yellow", "hollow trees", "fruit"),
}  # fmt: skip
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SPOTS = ("mill", "school", "church", "market", "bridge", "well", "farm", "station")
FELT = ("was happy", "laughed", "was surprised", "stood still", "took a picture", "told a friend about it")
THEN = ("walked home", "went on", "sat down on a bench", "ate an apple", "wrote a letter", "looked at the clouds")
ASKED = ("What is {a}?", "What colour is {a}?", "Where does {a} live?", "What does {a} eat?")

# quay, daily fee, first and last hour, lamp, officer, cargo
VESSELS = {
    "barge": ("north quay", "four", "fourth", "ninth", "green", "weigher", "coal"),
    "ferry": ("south quay", "seven", "fifth", "tenth", "white", "gatekeeper", "passengers"),
    "tug": ("inner basin", "two", "third", "eighth", "blue", "pilot", "rope"),
    "yacht": ("marble steps", "nine", "sixth", "twelfth", "violet", "purser", "wine"),
    "trawler": ("fish pier", "three", "second", "seventh", "amber", "inspector", "herring"),
    "raft": ("timber yard", "one", "sixth", "eleventh", "red", "forester", "timber"),
    "dredger": ("mud berth", "five", "fourth", "tenth", "yellow", "engineer", "gravel"),
    "tanker": ("outer mole", "twelve", "seventh", "eleventh", "crimson", "fire warden", "oil"),
    "cutter": ("customs stairs", "six", "fifth", "ninth", "turquoise", "customs clerk", "letters"),
    "lighter": ("grain wharf", "eight", "third", "twelfth", "ivory", "granary keeper", "wheat"),
    "steamer": ("clock pier", "ten", "eighth", "tenth", "scarlet", "stoker general", "mail"),
    "houseboat": ("willow canal", "eleven", "second", "sixth", "rose", "canal bailiff", "furniture"),
}
FINES = ("twenty", "thirty", "forty", "fifty")
ARTICLES = (
    ("Mooring of {v}s", "A {v} shall moor at the {quay} between the {first} and the {last} hour. The harbour master levies {fee} "
     "crowns for each day. Whoever moors a {v} elsewhere forfeits {fine} crowns."),
    ("Lamps of {v}s", "A {v} under way by night shall show the {lamp} lamp at the mast. If the {lamp} lamp fails, the {v} shall anchor "
     "and sound its horn until the {officer} comes alongside. The penalty is {fine} crowns."),
    ("Cargo of {v}s", "A {v} laden with {cargo} shall be reported to the {officer} before unloading at the {quay}. Undeclared "
     "{cargo} is forfeit to the harbour, and the skipper pays {fine} crowns."),
    ("Disputes concerning {v}s", "Disputes between the skipper of a {v} and the {officer} are settled by the harbour court at the "
     "{last} hour. The party that loses bears {fee} crowns of costs, payable at the {quay}."),
    ("{v}s in winter", "While the basin is frozen, a {v} shall remain at the {quay}, and no fee beyond {fee} crowns may be "
     "levied. The {officer} shall have the ice broken from the {first} hour."),
)  # fmt: skip
OPENINGS = (
    "Harbour of Eldmouth. Ordinance {n}.", "Ordinance {n} of the harbour of Eldmouth.",
    "By order of the harbour court of Eldmouth, ordinance {n}.",
)  # fmt: skip
CLOSINGS = (
    "This ordinance enters into force on the day of its posting.", "Earlier ordinances to the contrary are repealed.",
    "Given at the harbour court.", "The harbour master shall see to its execution.",
)  # fmt: skip


def article(noun):
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def facts(name):
    """Four sentences about an animal, in the order of ASKED."""
    kind, colour, home, food = ANIMALS[name]
    said = article(name).capitalize()
    return f"{said} is {article(kind)}.", f"{said} is {colour}.", f"{said} lives in {home}.", f"{said} eats {food}."


def everyday(draw) -> str:
    """A document of everyday text: what two animals are like, or what somebody saw."""
    one, two = draw.sample(list(ANIMALS), 2)
    if draw.random() < 0.5:
        return " ".join(draw.sample(facts(one), 4) + draw.sample(facts(two), 4))
    who, other, (_, colour, home, food) = *draw.sample(PEOPLE, 2), ANIMALS[one]
    told = f"On {draw.choice(DAYS)} {who} saw {article(one)} near the {draw.choice(SPOTS)}. The {one} was {colour}. "
    told += draw.choice((f"It came from the {home}. ", f"It was looking for {food}. ", f"{who} gave it some {food}. "))
    at = draw.randrange(4)
    told += f"{who} {draw.choice(FELT)}. {other} asked: {ASKED[at].format(a=article(one))} "
    return told + f"{facts(one)[at]} Then {who} and {other} {draw.choice(THEN)}."


def conversations() -> list[dict]:
    """Every question about every animal, with its answer."""
    return [
        {"question": asked.format(a=article(name)), "answer": said}
        for name in ANIMALS
        for asked, said in zip(ASKED, facts(name), strict=True)
    ]


def ordinance(draw, number) -> str:
    """A document of the domain: some articles about vessels."""
    lines = [draw.choice(OPENINGS).format(n=number)]
    rules = list(itertools.product(VESSELS, ARTICLES))
    for n, (vessel, (title, text)) in enumerate(draw.sample(rules, 3), 1):
        names = ("quay", "fee", "first", "last", "lamp", "officer", "cargo")
        words = dict(zip(names, VESSELS[vessel], strict=True), v=vessel, fine=FINES[(len(vessel) + len(title)) % 4])
        heading = title.format(v=vessel).replace("ferrys", "ferries")
        lines.append(f"Article {n}. {heading[0].upper()}{heading[1:]}. {text.format(**words)}")
    return "\n".join([*lines, draw.choice(CLOSINGS)])


def sample(seed):
    """{file: rows} of sample/. The domain has what real collections have: reprints, near-copies, rows that are none."""
    draw = random.Random(seed)
    domain = [{"text": ordinance(draw, number)} for number in range(1, 121)]
    for at in (7, 30, 61, 88):  # reposted with another number and last line: near-duplicates
        text = domain[at]["text"].replace(f"rdinance {at + 1}", f"rdinance {900 + at}").rpartition("\n")[0]
        domain.append({"text": f"{text}\n{CLOSINGS[at % 4]}"})
    domain += [dict(domain[3]), dict(domain[40]), {"text": ""}, {"text": None}]
    return {
        "harbour.jsonl": domain,
        "everyday.jsonl": [{"text": everyday(draw)} for _ in range(160)],
        "chats.jsonl": conversations(),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the three files; existing ones are kept")
    parser.add_argument("--seed", type=int, default=3407, help="of everything that is drawn")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in sample(args.seed).items():
        write_lines(new_file(args.out / name), rows)
        print(f"{len(rows)} rows: {args.out / name}")


if __name__ == "__main__":
    main()
