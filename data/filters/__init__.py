"""Filter rounds: which documents of an encoded corpus are worth training on, decided rule by rule and undone at will.

rounds.py       the stack of rounds below a corpus folder: add, undo, kept, report
pool.py         what a rule is given (the documents kept so far, and workers) and what it answers
duplicates.py   ExactDuplicates by SHA-256, NearDuplicates by MinHash
quality.py      TextQuality: language-free measures of prose and code
media.py        MediaQuality: blank pictures, silence, saturated sound, frozen film
rules.py        rules by name, for the command line and for recipes
scores.py       Threshold: any score, an early model's losses for instance

rounds = Rounds.open(corpus)
rounds.add(ExactDuplicates())
rounds.add(NearDuplicates(threshold=0.8), num_workers=4)
plan = Plan.build(corpus, row_tokens=4096, documents=rounds.kept())
"""

RULES = ("exact_duplicates", "near_duplicates", "text_quality", "media_quality")
"""Rules with names, in the order in which they are best applied: what is dropped early need not be judged later."""
