"""The house: ten scripts on top, wings that serve them, imports that go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINGS = ("grader", "problems", "kernels", "engines", "training", "evaluation", "speed", "page")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
# A module imports from lower layers and from its own wing.
LAYERS = [
    ["configs"],
    ["losses", "schedule", "grader", "kernels"],
    ["reward", "model"],
    ["problems.prompts", "problems.files", "problems.golds", "problems.rows"],
    ["engines"],
    ["rollout"],
    ["training", "evaluation", "page"],
    ["eval"],
    ["train_grpo"],
    ["speed"],
    ["bench"],
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(p): p for p in [*ROOT.glob("*.py"), *(p for w in (*WINGS, "configs") for p in ROOT.glob(f"{w}/*.py"))]
}


def imported_modules(path: Path) -> set[str]:
    """Every module of ours that a file imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= submodules & set(FILES) or {node.module}
    return names & set(FILES)


def layer(module: str) -> int | None:
    for height, modules in enumerate(LAYERS):
        if module in modules or module.split(".")[0] in modules:
            return height
    return None


def test_there_are_ten_scripts_and_eight_wings():
    assert SCRIPTS == sorted("train_grpo rollout reward model data_prep eval losses schedule bench plot".split())
    for wing in WINGS:
        docstring = ast.get_docstring(ast.parse((ROOT / wing / "__init__.py").read_text(encoding="utf-8")))
        rooms = [p.stem for p in ROOT.glob(f"{wing}/[!_]*.py")]
        assert all(f"`{room}`" in docstring for room in rooms), f"{wing}/__init__.py does not name all its rooms"


@pytest.mark.parametrize("module", FILES)
def test_imports_go_one_way(module):
    wing = module.split(".")[0]
    for other in imported_modules(FILES[module]):
        if wing in (*WINGS, "configs"):
            allowed = {"losses", "schedule", "model", "rollout", "reward", "configs"}
            if wing == "speed":  # it measures what the scripts do
                allowed |= {"train_grpo"}
            assert other in allowed or other.split(".")[0] in (*WINGS, "configs"), (
                f"{module} imports the script {other}"
            )
        if layer(module) is not None and layer(other) is not None and other.split(".")[0] != wing:
            assert layer(other) < layer(module), f"{module} imports {other}, which is not below it"
        if other.startswith("problems.") and other not in sum(LAYERS, []):
            tiny_task = wing == "speed" and other == "problems.tiny"  # for its tokenizer and its problems
            alone = wing == "problems" or module == "data_prep" or tiny_task
            assert alone, f"{module} imports {other}, which is data_prep's alone"


def test_there_is_no_import_cycle():
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in imported_modules(FILES[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in FILES:
        visit(module, [])


def test_scripts_run_from_another_directory_and_open_no_connection_at_import(tmp_path):
    code = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a connection at import")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.path[0] = {str(ROOT)!r}
import train_grpo, eval, data_prep, bench, plot
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr
    explain = [sys.executable, ROOT / "reward.py", "--explain", "1/2", "0.5"]  # finds its wing beside it
    done = subprocess.run(explain, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("verdict equal\n")
