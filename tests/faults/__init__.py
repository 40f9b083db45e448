"""The fault table as tests: `rows.py` has the table, `docs/reliability.md` shows it."""
