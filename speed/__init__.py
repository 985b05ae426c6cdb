"""What `bench.py` measures. Read `measure` first (repeats, spreads, errors, tables), then `kernels` (matrix products,
attention, log-probabilities), `passes` (training and generation beside bare loops), `steps` (whole steps, sync,
rewards) and `growth` (seconds against length and group size). `against` is the comparison with TRL: `machine` says who
else computed meanwhile, `our_side` and `trl_side` are the two programs it starts.
"""
