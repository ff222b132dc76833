"""Train, validation and test prompts: disjoint by question and by what is asked (tasks.py says how)."""

from random import Random

from examples.tiny_world.tasks import (
    FAMILIES,
    HELD_OUT,
    STYLES,
    TRAIN_ROWS,
    Item,
    Prompt,
    draw_style,
    in_style,
)

KEEP_FACTS = (
    "minus",
    "next",
    "opposite",
)  # their facts must be trained on: only a fact in one style is held out
SPLITS = ("train", "validation", "test")


def split(seed: int = 0) -> dict[str, list[Prompt]]:
    """All prompts of the tiny world, shuffled within each set."""
    random = Random(seed)
    sets: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for task, family in FAMILIES.items():
        for name, prompts in _split_task(task, list(dict.fromkeys(family())), random).items():
            sets[name] += prompts
    for prompts in sets.values():
        random.shuffle(prompts)
    return sets


def _split_task(task: str, items: list[Item], random: Random) -> dict[str, list[Prompt]]:
    by_key: dict[str, list[Item]] = {}
    for item in items:
        by_key.setdefault(item.key, []).append(item)
    keys = [key for key in sorted(by_key) if task != "plus" or _first_is_larger(key)]
    random.shuffle(keys)
    n_validation, n_test = HELD_OUT[task]
    held_keys = {"test": keys[:n_test], "validation": keys[n_test : n_test + n_validation]}
    held_style = {key: _held_style(task, random) for name in held_keys for key in held_keys[name]}
    out: dict[str, list[Prompt]] = {}
    for name in held_keys:
        out[name] = [in_style(random.choice(by_key[key]), held_style[key], random) for key in held_keys[name]]
    allowed = [item for item in items if item.key not in held_style or task in KEEP_FACTS]
    out["train"] = _draw_train(task, allowed, held_style if task in KEEP_FACTS else {}, random)
    return out


def _first_is_larger(key: str) -> bool:
    """Sums that may be held out: the mirror image of each stays in training."""
    a, _, b = key.split()
    return int(a) > int(b)


def _held_style(task: str, random: Random) -> str | None:
    return random.choice((None, *STYLES)) if task in KEEP_FACTS else draw_style(random)


def _draw_train(task: str, items: list[Item], refused: dict[str, str | None], random: Random) -> list[Prompt]:
    """Draw distinct questions, every item of a small family at least about once, until the share is full."""
    chosen: dict[str, Prompt] = {}
    random.shuffle(items)
    turn = 0
    while len(chosen) < TRAIN_ROWS[task]:
        item = items[turn % len(items)]
        turn += 1
        style = draw_style(random)
        if item.key in refused and refused[item.key] == style:
            continue
        prompt = in_style(item, style, random)
        chosen.setdefault(prompt.question, prompt)
    return list(chosen.values())
