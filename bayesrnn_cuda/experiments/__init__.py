"""Experiments of the paper on real text. Run them with `bayesrnn experiment` or `bayesrnn train`;
import what a script of your own needs.

experiments     the registry: one entry an experiment; presets and sweeps by name
commands        the verb `experiment`
run_queue       its members of several sweeps side by side, as processes
recurrent_model what the models of both experiments share: options, layers by kind of dropout
naive_dropout   what the paper compares with, for both experiments

language        text, model, task, evaluation (perplexity by the dropout approximation and by MC
                dropout), generation of text; presets and sweeps as tables
forecasting     synthetic series, forecasts by this package's layer and by published methods, the
                narrowest possible intervals, tables over seeds
intervals       for a whole horizon by several rules; calibrate: whether those of other runs hold
sentiment       the Cornell reviews, model, task, evaluation (calibration); tables likewise
training        for any experiment: trainer, what a task is, options, run folders, checkpoints,
                several processes, presets, learning curves
report          runs read back, tables and figures like the paper's; standard, naive and Bayesian
                side by side
"""
