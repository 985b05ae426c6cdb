"""What eval.py does with sampled responses. Read `grade` (from responses to a benchmark's figures), `stats` (intervals,
pass@k, the paired test, as formulas), then `report` (tables, picture, comparisons of two evaluations).
"""
