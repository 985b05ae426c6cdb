"""When two mathematical answers are equal; reward.py is its front door. Read `text` (notation cleaned, tokens),
`parser` (tokens into a small tree), `compare` (one function a kind of answer), then `values` (the same number, the same
function): pure functions, and nothing in an answer is ever evaluated as code. `pool` runs rewards in processes that can
be killed.
"""
