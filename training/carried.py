"""The groups that a step carries over to the next one (partial_rollouts), as two files of a checkpoint.

`carried.json` has a row for each sample, `carried.safetensors` the tokens and log-probabilities of all samples, end to
end: no pickle. Both are there only where something is carried over. Rank 0 writes, every rank reads.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from rollout import Rollout

ARRAYS = {"prompt_ids": np.int32, "response_ids": np.int32, "logprobs": np.float32}  # fields of a sample, as stored
FIELDS = ("prompt_id", "sample_id", "finish_reason", "draw", "segments")  # those that stand in its row


def write(folder: Path, groups: tuple[list[Rollout], ...]) -> None:
    """Both files in `folder`; nothing if there are no groups."""
    if not groups:
        return
    rollouts = [r for group in groups for r in group]
    rows, arrays = [], {}
    for r in rollouts:
        lengths = {name: len(getattr(r, name)) for name in ARRAYS}
        rows.append({name: getattr(r, name) for name in FIELDS} | {"lengths": lengths})
    for name, kind in ARRAYS.items():
        arrays[name] = np.array([value for r in rollouts for value in getattr(r, name)], kind)
    save_file(arrays, folder / "carried.safetensors")
    sizes = [len(group) for group in groups]
    (folder / "carried.json").write_text(json.dumps({"group_sizes": sizes, "samples": rows}), encoding="utf-8")


def read(folder: Path) -> tuple[list[Rollout], ...]:
    """The groups of a whole checkpoint, as they were written; () if it has none."""
    if not (folder / "carried.json").exists():
        return ()
    content = json.loads((folder / "carried.json").read_text(encoding="utf-8"))
    arrays, ends = load_file(folder / "carried.safetensors"), dict.fromkeys(ARRAYS, 0)
    rollouts = []
    for row in content["samples"]:
        fields: dict[str, Any] = {name: row[name] for name in FIELDS}
        fields["segments"] = tuple((step, tokens) for step, tokens in row["segments"])
        for name in ARRAYS:
            first, ends[name] = ends[name], ends[name] + row["lengths"][name]
            fields[name] = arrays[name][first : ends[name]].tolist()
        rollouts.append(Rollout(**fields))
    remaining = iter(rollouts)
    return tuple([next(remaining) for _ in range(size)] for size in content["group_sizes"])
