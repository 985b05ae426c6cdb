"""Where problems come from. `prompts` serves training and evaluation: problem files, tokenizer, chat template, which
`templates` runs within limits. `rows` reads files for it and for data_prep.py. All else is data_prep.py's alone:
`sources` has the published datasets, `choices` and `endpoint` find answers, `similarity` and `duplicates` find copies,
`report` says what went; `tiny` and `parametric` make problems from nothing."""
