"""What trains any experiment: trainer, tasks, run folders, options, several processes, plots."""
