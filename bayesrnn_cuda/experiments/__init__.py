"""Experiments of the paper on real text. Run them with `bayesrnn experiment` or `bayesrnn train`;
import what a script of your own needs.

presets, preset_types, language_presets, sentiment_presets   the paper's settings and sweeps by name
configuration   one frozen dataclass per experiment, which is its command line too
task            what an experiment brings to the trainer
training        updates, schedule, run folder, exact resumption
distributed     data-parallel runs under torchrun

text, language_model, language_task, optimization, evaluation   language models: words, vocabulary
                corpora; model; objective; perplexity by the dropout approximation and by MC dropout
generation, comparison   text from a checkpoint; standard, naive, Bayesian side by side
reviews, sentiment, sentiment_task, sentiment_evaluation   the Cornell reviews, model, calibration

commands, command_line   the verb `experiment`, and what all verbs share
report, report_figures, run_records   figures and tables like the paper's from run folders
checkpoint, runs, plots  files, interruption, progress, figures: for any experiment
"""
