"""A run as one HTML file, for `plot.py`: `report` (the page, from a run's files), `dumps` (its rollouts, as many as
fit), `alarms` (what may be wrong with it), `explain` (what the grader says of an answer, in a process of its own).

`report.html`, `report.css`, `report.js`, `curves.js` and `rollouts.js` are put into it as they are, and `katex.min.js`,
which draws formulas: KaTeX from the npm registry, MIT licence (`KATEX_LICENSE`). Texts of a run go in as data and
become text on the page, never markup.
"""
