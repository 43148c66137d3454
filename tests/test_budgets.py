"""How long the code may be, and that what is public tells the types that it takes."""

import ast

import pytest
from conftest import ROOT

SCRIPTS = {"train.py": 200, "realtime_detect.py": 150}  # lines
MODULE, FUNCTION, TOTAL = 300, 50, 7800  # lines
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
FILES = [*SCRIPTS, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "expressions").rglob("*.py"))]


def count_lines(file):
    return len((ROOT / file).read_text(encoding="utf-8").splitlines())


def public_functions(body, prefix=""):
    """Yield name and node of each function and method of public name that doesn't stand in another function."""
    for node in body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public_functions(node.body, f"{node.name}.")
            else:
                yield prefix + node.name, node


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_not_too_long(file):
    assert count_lines(file) <= SCRIPTS.get(file, MODULE)


@pytest.mark.parametrize("file", FILES)
def test_no_function_is_too_long(file):
    """From def to end, so without its decorators."""
    too_long = []
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, FUNCTIONS) and (count := node.end_lineno - node.lineno + 1) > FUNCTION:
            too_long.append(f"{node.name} in line {node.lineno}: {count} lines")
    assert too_long == []


def test_the_program_is_not_too_long():
    assert sum(map(count_lines, FILES)) <= TOTAL


@pytest.mark.parametrize("file", FILES)
def test_arguments_of_public_functions_have_types(file):
    """The linter asks for types of arguments everywhere or nowhere; of what is returned it asks itself."""
    untyped = []
    for name, node in public_functions(ast.parse((ROOT / file).read_text(encoding="utf-8")).body):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        untyped += [
            f"{name}: {argument.arg}"
            for argument in arguments
            if argument and not argument.annotation and argument.arg not in ("self", "cls")
        ]
    assert untyped == []
