"""What eval.py does with sampled responses. Read `grade` (from responses to a benchmark's figures), `completions` (the
files they stand in), `formats` and `engines` (what others wrote), `stats` (intervals, pass@k, the paired test, as
formulas), `report` (tables, comparisons), then `score` (all of it, by one rule or several). `child` runs an evaluation
in a process of its own."""
