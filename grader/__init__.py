"""When two mathematical answers are equal; reward.py is its front door. Pure functions, and nothing in an answer is
ever evaluated as code. Read `clean` and `text` (notation), `tokens`, `tree` and `parser` (text into a small tree),
`units` (words after a number), `answers` (two whole answers), `compare` (one function a kind of answer), `sets` (of
reals), `scalars` (the same number, the same function), then `values` (of a tree at one point). `deepscaler` holds the
rule of that run, and string equality, to compare with. `pool` runs rewards in processes that can be killed.
"""
