"""Imports go only downward, and the library imports nothing that it does not need."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import flaxcls

PACKAGE = Path(flaxcls.__file__).parent

# From the bottom to the top; a module imports from lower lines alone (and from its own folder).
LAYERS = [
    ["types", "errors"],
    ["config"],
    ["config_json"],
    ["validation"],
    ["contract"],
    ["models"],
    ["early_stopping"],
    ["parameters", "parts"],
    ["losses", "muon"],
    ["metrics"],
    ["augment"],
    ["state"],
    ["finite"],
    ["optim"],
    ["step"],
    ["sharding"],
    ["__init__"],
    ["storage"],
    ["data"],
    ["run"],
    ["analysis"],
    ["cli"],
    ["train", "inspect", "evaluate", "report", "predict", "explain", "export"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "flaxcls")


def test_every_module_has_its_layer():
    there = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert {name for name in there if name != "py"} <= set(LEVEL)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "flaxcls" or len(parts) < 2:
            continue
        if parts[1] in LEVEL:
            assert LEVEL[parts[1]] < LEVEL[top] or parts[1] == top, f"{path} imports {name}, which lies above it"


PUBLIC = (
    *("config", "config_json", "contract", "early_stopping", "finite", "losses", "metrics", "muon", "optim"),
    *("parameters", "parts", "sharding", "state", "step", "types"),
)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_what_it_defines(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    listed = importlib.import_module(f"flaxcls.{name}").__all__
    assert {name for name in defined if not name.startswith("_")} <= set(listed)
    assert sorted(listed) == list(dict.fromkeys(sorted(listed)))


# Above the flat library, the modules that may import `flaxcls.config`. All others take values.
CONFIG_READERS = {
    *("train.py", "inspect.py", "evaluate.py", "cli.py"),
    *("analysis/classifier.py", "analysis/evaluation.py", "analysis/own_data.py"),
    *("data/__init__.py", "data/again.py", "data/arrange.py", "data/digits.py", "data/folder.py"),
    *("data/found.py", "data/listed.py", "data/tfds.py"),
    *("run/loop.py", "run/dry_run.py", "run/setup.py", "run/checks.py", "run/plan.py"),
    *("run/workdir.py", "run/resume.py", "run/messages.py", "run/preview.py"),
}
# In the flat library, a module that makes values from one class of the configuration, and no other class of it.
MAKERS = {
    "models/__init__.py": {"ModelConfig"},
    "augment/operations.py": {"AugmentConfig"},
    "augment/views.py": {"AugmentConfig"},
    "early_stopping.py": {"StopConfig"},
    "losses.py": {"LossConfig"},
    "optim.py": {"OptimConfig"},
}


def config_imports():
    """Yields (path in the package, name imported from flaxcls.config)."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "flaxcls.config":
                yield from ((path.relative_to(PACKAGE).as_posix(), alias.name) for alias in node.names)
            assert not (isinstance(node, ast.Import) and "flaxcls.config" in [alias.name for alias in node.names])


def test_few_modules_know_the_configuration():
    found = {}
    for path, name in config_imports():
        found.setdefault(path, set()).add(name)
    assert found.keys() == CONFIG_READERS | MAKERS.keys() | {"config_json.py", "validation.py"}
    assert {path: found[path] for path in MAKERS} == MAKERS


def test_flaxcls_does_not_import_experiments():
    for path in PACKAGE.rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "experiments"]


def test_orbax_is_imported_by_the_two_files_on_checkpoints():
    users = {path.name for path in PACKAGE.rglob("*.py") if any(n.startswith("orbax") for n in imported(path))}
    assert users == {"checkpoint.py", "checkpoint_files.py"}


def test_no_exported_name_is_a_modules():
    assert not set(flaxcls.__all__) & {path.stem for path in PACKAGE.iterdir()}


def test_the_library_is_light():
    """All that a researcher imports, at once; what lies above the package itself may need more."""
    library = [name for name, level in LEVEL.items() if level < LEVEL["__init__"]]
    modules = ", ".join(["flaxcls", *(f"flaxcls.{name}" for name in library)])
    heavy = [
        "tensorflow",
        "tensorflow_datasets",
        "orbax",
        "grain",
        "tyro",
        "sklearn",
        "cv2",
        "matplotlib",
        "tensorboardX",
    ]
    code = f"import {modules}, sys; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
