"""The report on finished runs: records read back, tables beside the paper's, figures."""
