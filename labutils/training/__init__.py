"""Training: settings, the loop (`fit`) and its callbacks, evaluation, optimizers, checkpoints."""

from labutils.training.callbacks import Callback, Probe, State
from labutils.training.checkpoints import CheckpointError
from labutils.training.evaluation import evaluate, predict
from labutils.training.history import Diverged, History, Interrupted
from labutils.training.loop import fit
from labutils.training.numerics import OutOfMemory
from labutils.training.settings import Training
