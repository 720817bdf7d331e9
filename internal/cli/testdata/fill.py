#!/usr/bin/env python3
"""Writes fill.json: what Python's own textwrap.fill makes of handwritten and of random texts."""
import json
import random
import textwrap

rand = random.Random(19)
texts = [
    "", " ", "word", "  leading blanks stay", "trailing blanks go   ",
    "well-known half-hyphenated-words and x-1 1-2 a-b and non-ASCII-übergröße",
    "em--dash and --option and --two-words and trailing- and -leading",
    "tab\tstops\t\tat eight", "several\nlines\r\nbecome one",
    "inventory-2.4-7.tis.x86_64.rpm-which-is-far-too-long-for-one-line-of-any-terminal",
    "-----------------------------------------------------------------------------",
    "补丁编排要求集群处于一个良好的状态 with-some-latin between",
    "no\u00a0break\u00a0blank and \u2003 wide", "a-b-c-d-e-f ab-cd-ef",
    'quote"--dash!--bang\'--x &--y .--z ,--w ?--v (--n', "---a b---c --- d",
]
alphabet = "     ----abcXYZ019_,.!?\"'&(\t\né中\u00a0²"
for _ in range(400):
    texts.append("".join(rand.choice(alphabet) for _ in range(rand.randrange(90))))
cases = []
for i, t in enumerate(texts):
    for width in (76, 30) if i < 16 else (rand.randrange(1, 40),):
        indent = " " * (rand.choice((0, 0, 4, 20)) if width > 20 else rand.choice((0, 2)))
        first = rand.choice(("", indent))
        cases.append({"text": t, "width": width, "first": first, "rest": indent,
                      "want": textwrap.fill(t, width=width, initial_indent=first, subsequent_indent=indent)})
with open("fill.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
