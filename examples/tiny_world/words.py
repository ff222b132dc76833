"""The closed vocabulary of the tiny world: every word a user or a reply can contain.

Outside the number words there are no homophones, on purpose: what is heard has one spelling.
"""

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
OPPOSITES = [
    pair.split("/")
    for pair in (
        "hot/cold big/small fast/slow old/young happy/sad day/night black/white full/empty hard/soft "
        "high/low long/short early/late rich/poor wet/dry good/bad light/dark loud/quiet clean/dirty "
        "thick/thin near/far"
    ).split()
]
NOUNS = (
    "dog cat bird horse train boat girl boy teacher doctor baby king river garden farmer student "
    "rabbit monkey driver uncle"
).split()
VERBS = "sleeps runs sings waits jumps walks laughs falls eats works smiles dances".split()
ADJECTIVES = "big small old young happy sad black white quiet dirty good rich".split()
LAST = "now again today".split()
REPLY_GLUE = "the answer is bigger smaller one after before comes opposite of my".split()
QUESTION_GLUE = "what which how much plus minus or repeat say it me tell slowly loudly speak".split()

REPLY_WORDS = sorted(
    {*NUMBERS, *DAYS, *MONTHS, *(word for pair in OPPOSITES for word in pair), *NOUNS, *VERBS}
    | {*ADJECTIVES, *LAST, *REPLY_GLUE}
)
VOCABULARY = sorted({*REPLY_WORDS, *QUESTION_GLUE})
