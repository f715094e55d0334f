"""The report: one HTML file that needs no network, and the tables beside it.

In: a plan, its records, frames of ``study``. Out: report.html, table.csv, table.parquet.
Never: computes a number that ``study`` does not give.
"""
