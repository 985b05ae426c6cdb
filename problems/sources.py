"""Where problems come from: published datasets, fetched from the hub or found in a folder.

`TRAINING` holds DeepScaleR's sources and its published set, `BENCHMARKS` its five test sets, `LATER_BENCHMARKS` four
contests of 2025; `rows` reads them all.
Downloads stand in `<folder>/<source>/`; `<folder>/sources.json` keeps each one's commit and checksums.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs import UserError, write_whole
from problems.rows import Raw, find


def until_2023(raw: Raw) -> bool:
    """Whether a row of the AIME, in either file, is older than the test: from 2024 on the AIME is one."""
    year = str(find(raw, "year"))
    if not year.isdecimal():
        raise ValueError(f"'year' is no year: {year!r}")
    return int(year) <= 2023


def is_amc(raw: Raw) -> bool:
    """Whether a row of NuminaMath-CoT is from the AMC: its amc_aime rows, but those that name the AIME. The answer
    stands in the solution; the year nowhere, so copies of AMC 2022 and 2023 are found as leaks."""
    return raw.get("source") == "amc_aime" and "AIME" not in str(raw.get("problem"))


def any_row(raw: Raw) -> bool:
    return True


# ------------------------------------------------------------------------------------------------- where the files are


@dataclass(frozen=True)
class Source:
    name: str
    repo: str  # a dataset on the hub; "" where there is none
    revision: str  # its commit; "" where it is not known here: the newest, from the first download on
    files: str  # pattern of its files in the repository, at any depth
    copies: tuple[str, ...]  # patterns of other copies, in a --raw_dir
    keep: Callable[[Raw], bool] = any_row  # which of a file's rows are the source's; may raise ValueError
    count: int = 0  # rows there must be; 0: however many there are


TRAINING = (
    Source("aime", "di-zhang-fdu/AIME_1983_2024", "c542a84241596639dc3e374e4fdf81ec24e9950c",
           "AIME_Dataset_1983_2024.csv", ("deepscaler/train_aime.json",), until_2023),
    Source("amc", "AI-MO/NuminaMath-CoT", "9d8d210c9f6a36c8f3cd84045668c9b7800ef517", "data/train-*.parquet", (),
           is_amc),
    Source("math", "", "", "*.json*", ("deepscaler/train_math.json",)),
    Source("omni_math", "KbsdJames/Omni-MATH", "0000b6bc8be4aa61655413073c3645ae4b3b30e8", "test.jsonl",
           ("omni_math_rule/test.jsonl",)),
    Source("still", "RUC-AIBOX/STILL-3-Preview-RL-Data", "", "*.parquet", ("still/*.jsonl",)),
    Source("deepscaler", "agentica-org/DeepScaleR-Preview-Dataset", "b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
           "deepscaler.json", ("one_shot_rlvr/dsr_sub.jsonl",)),
)  # fmt: skip
BENCHMARKS = (
    Source("aime24", "HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "data/train-*.parquet",
           ("deepscaler/test_aime.json",), any_row, 30),
    Source("amc23", "AI-MO/aimo-validation-amc", "8ef249608d65c2de7763ca7525f438e540ba285e", "data/train-*.parquet",
           ("deepscaler/test_amc.json",), any_row, 83),
    Source("math500", "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl",
           ("deepscaler/test_math.json",), any_row, 500),
    Source("minerva", "nanoverl/minerva", "", "test/minerva.json", ("deepscaler/test_minerva.json",), any_row, 272),
    Source("olympiad", "nanoverl/olympiad_bench", "", "test/olympiad_bench.json",
           ("deepscaler/test_olympiad_bench.json",), any_row, 675),
)  # fmt: skip
# Contests of 2025, later than the data of DeepSeek-R1-Distill-Qwen and DeepScaleR. MathArena's three have fractions,
# roots and lists among their answers. (CMIMC's seventh, 930, is disputed: an exact count gives 932.)
LATER_BENCHMARKS = (
    Source("aime25", "math-ai/aime25", "", "test.jsonl", (), any_row, 30),
    Source("hmmt25", "MathArena/hmmt_feb_2025", "", "data/train-*.parquet", (), any_row, 30),
    Source("brumo25", "MathArena/brumo_2025", "", "data/train-*.parquet", (), any_row, 30),
    Source("cmimc25", "MathArena/cmimc_2025", "", "data/train-*.parquet", (), any_row, 40),
)


def files_in(source: Source, folder: Path) -> list[Path]:
    """The files of a source under a folder: those of the repository in `<name>/`, else the other copies."""
    own = sorted((folder / source.name).rglob(source.files))
    return own or sorted(p for pattern in source.copies for p in folder.glob(pattern))


def fetch(source: Source, folder: Path) -> list[Path]:
    """The files of a source, from the hub into `<folder>/<name>/` unless they are there. An interrupted download goes
    on where it was. Raises UserError without the hub, and where a file is not what was downloaded (its checksum)."""
    lock_file = folder / "sources.json"
    try:
        lock = dict(json.loads(lock_file.read_text(encoding="utf-8"))) if lock_file.is_file() else {}
        for entry in lock.values():
            entry["sha256"].items()
            entry["revision"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise UserError(f"{lock_file}: not the downloads' checksums: {e}; remove it to check them anew") from None
    entry = lock.get(source.name)
    if entry is None or (source.revision and entry["revision"] != source.revision):
        entry = lock[source.name] = _download(source, folder)
        write_whole(lock_file, json.dumps(lock, indent=1) + "\n")
    for name, expected in entry["sha256"].items():
        if not (folder / name).is_file() or checksum(folder / name) != expected:
            remedy = f"remove {source.name!r} from {lock_file}, and the folder, to fetch it again"
            raise UserError(f"{folder / name}: not the file that was downloaded: {remedy}")
    return [folder / name for name in entry["sha256"]]


def _download(source: Source, folder: Path) -> Raw:
    """Fetches the files of a source; its entry in `sources.json`: {repo, revision, sha256: {file: checksum}}."""
    from huggingface_hub import HfApi, snapshot_download

    repo, target = source.repo, folder / source.name
    try:
        revision = source.revision or HfApi().dataset_info(repo).sha
        print(f"{source.name}: {repo} at {revision}")
        snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=source.files, local_dir=target)
    except Exception as e:  # the hub's errors share no base class, and each of them means: no data
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        remedy = f"run it again to go on, or put its files into DIR/{source.name}/ and pass --raw_dir=DIR"
        raise UserError(f"{source.name}: the hub did not give {repo}: {reason} ({remedy})") from None
    checksums = {str(path.relative_to(folder)): checksum(path) for path in files_in(source, folder)}
    if not checksums:
        raise UserError(f"{source.name}: {repo} at {revision} has no {source.files}")
    return {"repo": repo, "revision": revision, "sha256": checksums}


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
