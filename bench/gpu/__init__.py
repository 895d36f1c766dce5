"""Everything that needs a GPU, in two calls of minutes that lose nothing: docs/gpu.md.

Only the children load torch. What starts them, watches them and writes what they find needs the
standard library alone, so that no state of a GPU can stop it.
"""
