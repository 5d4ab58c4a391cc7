"""A notebook's claims: which runs each compares (comparison), how clear the difference is (statistics), and whether the
claim holds (table): if its p, adjusted for the number of claims in the table, is below 5 %."""

from labutils.notebook.claims.comparison import Comparison, notebooks_with_claims, read_comparisons
from labutils.notebook.claims.statistics import Difference, difference, holm
from labutils.notebook.claims.table import Claims, percent
