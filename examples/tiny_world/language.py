"""The recogniser's language: a bigram model in ARPA form from training replies, and a dictionary to match.

Every reply word is a unigram, seen or not. Absolute discounting; fixed order and precision, so the same
replies give the same bytes.
"""

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

DISCOUNT = 0.5


def bigram_arpa(replies: Iterable[str], vocabulary: Iterable[str]) -> str:
    """An ARPA bigram model of the replies over the vocabulary."""
    sentences = [["<s>", *reply.split(), "</s>"] for reply in replies]
    word_counts = Counter(word for sentence in sentences for word in sentence)
    pairs = Counter(pair for sentence in sentences for pair in pairwise(sentence))
    context_counts: Counter[str] = Counter()
    following: dict[str, list[str]] = {}
    for (first, second), count in sorted(pairs.items()):
        context_counts[first] += count
        following.setdefault(first, []).append(second)
    every = sorted({*vocabulary, "<s>", "</s>"})
    total = sum(word_counts.values()) + len(every)
    chance = {word: (word_counts[word] + 1) / total for word in every}
    lines = ["\\data\\", f"ngram 1={len(every)}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    for word in every:
        after = following.get(word, [])
        freed = DISCOUNT * len(after) / context_counts[word] if after else 1.0
        backoff = freed / (1 - sum(chance[other] for other in after))
        lines.append(f"{math.log10(chance[word]):.4f} {word} {math.log10(backoff):.4f}")
    lines += ["", "\\2-grams:"]
    for (first, second), count in sorted(pairs.items()):
        lines.append(f"{math.log10((count - DISCOUNT) / context_counts[first]):.4f} {first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])


def dictionary_of(vocabulary: Iterable[str], lexicon: Iterable[str]) -> str:
    """The lines of a pronunciation lexicon for these words; a word without one is an error."""
    wanted = set(vocabulary)
    lines = [line.rstrip() for line in lexicon if line.split()[0].split("(")[0] in wanted]
    missing = wanted - {line.split()[0].split("(")[0] for line in lines}
    if missing:
        raise ValueError(f"every word must be in the lexicon, missing {sorted(missing)}")
    return "\n".join([*lines, ""])
