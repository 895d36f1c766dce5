"""Every experiment of the paper by name: a preset is one run, a sweep the runs of one figure or
table.

The values are those of the authors' scripts (repository yaringal/BayesianRNN) where there is one; a
preset's note says where there is none.
"""

import difflib

from .language import presets as language
from .sentiment import presets as sentiment
from .training.configuration import UserError
from .training.preset import Preset, Sweep

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        *language.SMALL,
        *language.MEDIUM,
        language.REDUCED_LARGE,
        *language.LARGE,
        *sentiment.LSTM,
        *sentiment.GRU,
    )
}
SWEEPS: dict[str, Sweep] = {sweep.name: sweep for sweep in (*language.SWEEPS, *sentiment.SWEEPS)}


def find(name: str) -> Preset | Sweep:
    """The preset or sweep of that name; `SWEEP/LABEL` is one member.

    Raises:
        UserError: there is none; the message has the closest names.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in SWEEPS:
        return SWEEPS[name]
    sweep, slash, label = name.partition("/")
    if slash and sweep in SWEEPS:
        members = SWEEPS[sweep].members
        if label in members:
            return members[label]
        raise UserError(
            f"argument NAME: expected one of {', '.join(members)} in '{sweep}', got '{label}'"
        )
    close = difflib.get_close_matches(name, [*PRESETS, *SWEEPS], n=3, cutoff=0.5)
    hint = f"closest: {', '.join(close)}" if close else "'bayesrnn experiment list' shows them"
    raise UserError(f"argument NAME: expected a preset or a sweep ({hint}), got '{name}'")
