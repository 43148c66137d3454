"""Imports only go down the layers, the two wings never meet, and the webcam loads nothing that only others need.

Every module stands in LAYERS. It may import modules of lower layers, none of its own layer or a higher one.
"""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# from the bottom to the top
LAYERS = {
    "contract": ["expressions"],
    "terminal": ["expressions.cli"],
    "files": ["expressions.files"],
    "image formats": ["expressions.image_formats"],
    "image decoder": ["expressions.image_decoder"],  # what a limited process runs as well
    "images": ["expressions.images"],
    "window": ["expressions.window"],
    "model_file": ["expressions.model_file"],
    "model_validation": ["expressions.model_validation"],
    "classifier": ["expressions.classifier"],
    "model_compiler": ["expressions.model_compiler"],  # what the limited process runs
    "csv_rows": ["expressions.training.csv_rows", "expressions.training.fer2013"],
    # they have the types that the modules of one wing pass to one another
    "types": ["expressions.inference.types", "expressions.training.readers"],
    "corruptions": ["expressions.training.corruptions"],
    "metrics": ["expressions.training.metrics"],
    "names": ["expressions.inference.names"],
    "detector": ["expressions.inference.detector"],
    "process group": ["expressions.training.distributed"],  # of all processes that train one network
    "leaves": [
        "expressions.training",
        "expressions.training.augmentation",
        "expressions.training.callbacks",
        "expressions.training.dataset",
        "expressions.training.networks",
        "expressions.training.report",
        "expressions.training.synthetic",
        "expressions.training.targets",
        "expressions.training.teachers",
        "expressions.inference",
        "expressions.inference.neutral",
        "expressions.inference.overlay",
        "expressions.inference.summary",
        "expressions.inference.tables",
        "expressions.inference.tracker",
        "expressions.inference.workers",
    ],
    "video": ["expressions.inference.video"],
    "live": ["expressions.inference.live"],
    "sources": ["expressions.inference.sources"],
    "recognizer": ["expressions.inference.recognizer"],
    "sound": ["expressions.inference.sound"],
    "recorder": ["expressions.inference.recorder"],
    "jobs": ["expressions.inference.jobs"],
    "compositions": [  # of the leaves of one wing
        "expressions.training.command_line",
        "expressions.training.evaluation",
        "expressions.training.exporter",
        "expressions.training.trainer",
        "expressions.inference.batch",
        "expressions.inference.outputs",
        "expressions.inference.viewer",
    ],
    "scripts": ["train", "realtime_detect"],
}
LEVELS = {module: level for level, modules in enumerate(LAYERS.values()) for module in modules}
WINGS = ("expressions.training", "expressions.inference")
NOT_FOR_WEBCAM = {"keras", "tensorflow", "torch", "jax", "matplotlib", "seaborn", "pandas", "av"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in [*(ROOT / "expressions").rglob("*.py"), *ROOT.glob("*.py")]}


def project_imports(module):
    """The modules of this project that `module` imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write the import of {node.module} in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name for name in found if name.split(".")[0] in {"expressions", "train", "realtime_detect"}} - {module}


def wing(module):
    return next((wing for wing in WINGS if f"{module}.".startswith(f"{wing}.")), None)


def loaded_modules(module):
    """The names in sys.modules of a new process that has imported `module`."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_every_module_is_in_the_table():
    assert set(FILES) == set(LEVELS)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_only_go_down(module):
    for imported in project_imports(module):
        assert imported in FILES, f"{module} imports {imported}, which does not exist"
        assert LEVELS[imported] < LEVELS[module], f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", sorted(filter(wing, FILES)))
def test_the_wings_never_import_each_other(module):
    assert {wing(imported) for imported in project_imports(module)} <= {None, wing(module)}


def test_the_webcam_loads_nothing_that_it_does_not_need():
    loaded = loaded_modules("realtime_detect")
    assert "expressions.inference.tracker" in loaded
    assert not loaded & NOT_FOR_WEBCAM
    assert not {module for module in loaded if wing(module) == "expressions.training"} | ({"train"} & loaded)


@pytest.mark.parametrize("module", ["corruptions", "dataset", "metrics", "synthetic"])
def test_the_data_needs_no_deep_learning_framework(module):
    assert not loaded_modules(f"expressions.training.{module}") & {"keras", "tensorflow", "torch", "jax"}


def test_the_contract_loads_neither_opencv_nor_numpy():
    """It sets the environment that they read when they are imported."""
    assert not loaded_modules("expressions.cli") & {"cv2", "numpy"}
