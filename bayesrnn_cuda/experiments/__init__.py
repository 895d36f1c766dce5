"""Experiments of the paper on real text. Run them with `python -m bayesrnn_cuda`; import what a
script of your own needs.

configuration   one frozen dataclass per experiment, which is its command line too
text            words, vocabulary, corpora, lanes and windows
language_model  configuration and model
training        updates, schedule, run folder, resumption
evaluation      perplexity with the dropout approximation and with MC dropout
comparison      standard, naive and Bayesian dropout side by side
generation      text from a checkpoint
checkpoint, runs, plots   files, interruption, progress, figures: for any experiment
"""
