"""Sliders and live figures for JupyterLab: choose, predict, look."""

from labutils.notebook.explorers.background import Growth
from labutils.notebook.explorers.base import Explorer
from labutils.notebook.explorers.gradients import GradientExplorer
from labutils.notebook.explorers.temperature import TemperatureExplorer
from labutils.notebook.explorers.training import TrainingExplorer
from labutils.notebook.explorers.transfer import TransferExplorer
