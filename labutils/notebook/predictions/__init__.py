"""Predictions that count: asked before a figure, drawn beside what was measured, summed up at the notebook's end."""

from labutils.notebook.predictions.notebook import Notebook
from labutils.notebook.predictions.question import PREDICTION, Question
from labutils.notebook.predictions.scorecard import Scorecard
