"""Files of splats in other programs' formats, as rows of 14 numbers: a module a format. `clipgs.splats.read` chooses.

All count, and ask the limit, before they allocate. Their errors are `ValueError` with the bare reason.
"""
