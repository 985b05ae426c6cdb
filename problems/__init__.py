"""Where problems come from. `prompts` serves training and evaluation: problem files, tokenizer, chat template. All else
is for data_prep.py: `rows` and `sources` read files and published datasets, `choices` and `endpoint` find answers,
`similarity` and `duplicates` find copies, `report` says what went; `tiny` and `parametric` make problems from nothing.
"""
