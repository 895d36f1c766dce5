"""The recipes of docs/tools.md, run as they stand there, and the packages that they are for."""

import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tools.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> dict[str, str]:
    """Heading -> its code, preceded by empty lines, so that an error names a line of the page."""
    page = PAGE.read_text()
    found: dict[str, str] = {}
    for part in re.finditer(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        code = ""
        for block in BLOCK.finditer(page, *part.span(2)):
            code += "\n" * (page.count("\n", 0, block.start(1)) - code.count("\n"))
            code += block.group(1)
        if code:
            found[part.group(1)] = code
    return found


def recipe(heading: str, **given: object) -> types.ModuleType:
    """The names that the code under `heading` defines, beside `given` and those of the first."""
    code = sections()
    first = next(iter(code))
    module = types.ModuleType("recipe_" + re.sub(r"\W+", "_", heading).lower())
    sys.modules[module.__name__] = module  # what is saved by its name is looked up here
    for part in dict.fromkeys((first, heading)):
        exec(compile(code[part], str(PAGE), "exec"), module.__dict__)
        module.__dict__.update(given)
    return module


def package(*names: str) -> None:
    """Skips the module of tests that asks, unless these packages are there."""
    _let_torchvision_load()
    for name in names:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[tools]'")


def _let_torchvision_load() -> None:
    """PyPI's torchvision is built for the torch of PyPI, which is built for CUDA.

    Beside a torch for CPUs alone its compiled ops do not load, and its Python part ends at two of
    them that are not declared. They are declared here; nothing in these tests calls an op of its.
    Others import it where it is installed, torchmetrics and with it Lightning and darts.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
        importlib.import_module("torchvision")
