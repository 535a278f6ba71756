"""The report: one page about the triplets and the results, and search by text or picture."""
