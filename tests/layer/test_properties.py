"""Random cases, the same at every run; `make fuzz` runs thousands of others."""

import shlex
import sys
from dataclasses import replace

import cases
import fuzz
import property_cases
import pytest
import torch
import wrong_calls
from fuzz import examine
from wrong_calls import TARGETS, WrongCall, complaint, target_of

pytestmark = pytest.mark.usefixtures("two_threads")

SEED = 6


@pytest.mark.parametrize(
    ("name", "count"), [("layers", 100), ("unseen", 50), ("stacks", 100), ("wrong calls", 200)]
)
def test_property(name, count):
    assert examine(name, count, SEED) == count


@pytest.mark.parametrize("name", TARGETS)
def test_right_calls_are_right(name):
    """What the wrong calls start from."""
    target_of(name).call(**target_of(name).arguments)


def test_every_wrong_call_is_refused_by_name(tmp_path):
    """In a process of its own: none may crash it."""
    journal = tmp_path / "journal"
    outcome = fuzz.watch(fuzz.command_of("every wrong call", 0, 0, journal), journal, 240)
    assert outcome.problem is None, f"{outcome.problem}\n{fuzz.reproduction(outcome.case)}"
    assert outcome.cases > 4000


# ---- The properties must be able to fail, and say where


def planted(monkeypatch, bug):
    """The reference gets other inputs than the engine."""
    honest = cases.run

    def run_wrongly(case, inputs, engine):
        return honest(case, bug(inputs) if engine == "reference" else inputs, engine)

    monkeypatch.setattr(cases, "run", run_wrongly)


BUGS = {
    "a length is one short": lambda i: i._replace(
        lengths=None if i.lengths is None else (i.lengths - 1).clamp(min=0)
    ),
    "one mask for all gates": lambda i: i._replace(
        masks=i.masks._replace(keep_h=None if i.masks.keep_h is None else i.masks.keep_h[:1])
    ),
    "h0 is ignored": lambda i: i._replace(h0=torch.zeros_like(i.h0)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_layer_is_found(bug, monkeypatch):
    planted(monkeypatch, BUGS[bug])
    with pytest.raises(AssertionError) as error:
        examine("layers", 30, SEED, shrink=False)
    assert "case=Layer(" in "".join(error.value.__notes__)


def test_a_look_at_the_unseen_is_found(monkeypatch):
    honest = cases.run

    def look(case, inputs, engine):
        return honest(case, inputs._replace(lengths=None), engine)

    monkeypatch.setattr(cases, "run", look)
    with pytest.raises(AssertionError):
        examine("unseen", 30, SEED, shrink=False)


def test_a_wrong_module_is_found(monkeypatch):
    honest = property_cases.stack_results

    def other_masks(module, stack):
        slow = getattr(module, "engine", "") == "reference"
        return honest(module, replace(stack, seed=stack.seed + slow))

    monkeypatch.setattr(property_cases, "stack_results", other_masks)
    with pytest.raises(AssertionError):
        examine("stacks", 20, SEED, shrink=False)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (None, "expected an error, got none"),
        (AttributeError("T"), "got AttributeError"),
        (ValueError("size: expected 1, got 0"), "expected one of T in ValueError"),
        (RuntimeError("can't allocate memory"), "expected one of T in RuntimeError"),
        (ValueError("T: expected 1, got 0"), None),
    ],
    ids=str,
)
def test_complaint(raised, said, monkeypatch):
    """An answer is right only if it is an error of ours and names the argument."""

    target = target_of("plan")

    def plan(**arguments):
        if raised:
            raise raised

    monkeypatch.setattr(wrong_calls, "target_of", lambda name: replace(target, call=plan))
    answer = complaint(WrongCall("plan", (("T", "0"),)))
    assert answer is None if said is None else said in answer


PROCESSES = {
    "import os; os.abort()": "crash, SIGABRT",
    "import time; time.sleep(60)": "did not end in 1 s",
    "raise ValueError('wrong')": "ValueError: wrong",
}


@pytest.mark.parametrize("program", PROCESSES)
def test_a_process_that_fails_is_reported_with_its_case(program, tmp_path):
    journal = tmp_path / "journal"
    note = f"open({str(journal)!r}, 'w').write('Layer(T=1)'); "
    outcome = fuzz.watch([sys.executable, "-c", note + program], journal, 1)
    assert PROCESSES[program] in outcome.problem
    assert shlex.split(fuzz.reproduction(outcome.case))[-1] == "Layer(T=1)"


@pytest.mark.parametrize("held", [True, False])
def test_one_case_again(held, capsys):
    call = WrongCall("plan", (("T", "0" if held else "5"),))
    assert fuzz.again(repr(call)) == (0 if held else 1)
    assert capsys.readouterr().out.strip() == ("holds" if held else "expected an error, got none")
