"""Where problems come from. `prompts` serves training and evaluation: problems, tokenizer, chat template, which
`templates` runs within limits. `files` reads files of objects; `rows` finds problem and answer in one, `reading` in all
of a file; `golds` reads what stands for an answer, `instructions` takes off what a published prompt says besides. All
else is data_prep.py's alone: `sources` has the published datasets, `choices` and `endpoint` find answers, `similarity`
and `duplicates` find copies, `report` says what went, `split` cuts a set into parts; `tiny` and `parametric` make
problems from nothing."""
