"""docs/api.md is what the docstrings say now, and leaves out no public name."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import bayesrnn_cuda as brnn
from bayesrnn_cuda import engines, functional, masks, modules, objective, predict, reference

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text()

# heading -> the code under it
ENTRIES = dict(re.findall(r"^#{3,4} (\S+)\n\n```python\n(.*?)\n```$", PAGE, re.M | re.S))
# For the package itself, beside the checks of arguments.
INTERNAL = {"allow_tf32", "autocast_enabled", "resolve"}


def public(module) -> list[str]:
    """Functions and classes that the module defines under a public name."""
    return [
        name
        for name, item in vars(module).items()
        if not name.startswith(("_", "check"))
        and name not in INTERNAL
        and getattr(item, "__module__", "") == module.__name__
    ]


def test_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert make_api.page() == PAGE, "run `make docs`"


@pytest.mark.parametrize("name", sorted(set(brnn.__all__) - {"functional", "reference"}))
def test_has_every_name_of_the_package(name):
    assert name in ENTRIES


@pytest.mark.parametrize(
    "module", [functional, reference, modules, masks, predict, objective, engines]
)
def test_has_every_public_name_of(module):
    short = module.__name__.removeprefix("bayesrnn_cuda.")
    missing = [n for n in public(module) if n not in ENTRIES and f"{short}.{n}" not in ENTRIES]
    assert missing == []


def documented_arguments(code: str) -> list[str]:
    """Names in a signature on the page, or of the fields that stand there instead."""
    if "(" not in code.splitlines()[0]:
        return re.findall(r"^    (\w+):", code, re.M)
    inside = code[code.index("(") + 1 : code.rindex(")")]
    a = ast.parse(f"def f({inside}): pass").body[0].args
    found = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [argument.arg for argument in found if argument]


@pytest.mark.parametrize("name", sorted(n for n in ENTRIES if "# property" not in ENTRIES[n]))
def test_signature_of(name):
    item = brnn
    for part in name.split("."):
        item = getattr(item, part)
    own = {"self", "cls"} | ({"args", "kwargs"} if inspect.isclass(item) else set())  # nn.Module's
    given = [n for n in inspect.signature(item).parameters if n not in own]
    assert documented_arguments(ENTRIES[name]) == given
