"""Graders: one completion and its gold answer in, one status out.

text.py       the last \\boxed{}, and graders that need no library: exact, choice
normalise.py  rewritings of an answer that do not change what it means
structure.py  answers that differ although a computer algebra system would call them equal, and the reverse
mathematics.py  math: the last \\boxed{}, compared by math-verify
paper.py      paper: the conventions of the authors' own script, which are laxer
worker.py     the process in which math, paper and users' functions run: it can be killed
"""
