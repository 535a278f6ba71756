"""The report: one page of what was made and how good it is, and search by text or picture."""
