"""A notebook's claims: which runs each compares, how clear the difference is, and whether the claim holds."""

from labutils.notebook.claims.comparison import Comparison, notebooks_with_claims, read_comparisons
from labutils.notebook.claims.statistics import Difference, difference, holm
from labutils.notebook.claims.table import Claims, percent
