"""labutils: the package behind the deep-learning labs.

    import labutils as lab

    data = lab.load_data("mnist")
    model = lab.MLP(depth=5, width=64)
    history = lab.fit(model, data, lab.Training(epochs=3))
    lab.evaluate(model, "test", data)

What is needed daily is here. The rest is in the package's modules: lab.probes (gradients, theory, lesions, loss
surfaces) and, loaded when first used, lab.plots, lab.diagrams, lab.explorers, lab.exercises, lab.predictions.
"""

import importlib

from labutils.data import ArchiveError, DownloadError, ImageData, Split, StandInWarning, batches, load_data
from labutils.errors import SettingError
from labutils.experiments.cluster import ClusterError
from labutils.experiments.results import load_results
from labutils.experiments.running import run
from labutils.experiments.settings import Experiment, grid
from labutils.experiments.store import DamagedRun, Run, StoreError
from labutils.experiments.sweeps import sweep
from labutils.methods import probes
from labutils.methods.distillation import distillation_loss
from labutils.methods.features import extract_features, extract_logits
from labutils.methods.linear import linear_probe, linear_svm
from labutils.methods.neighbours import knn
from labutils.methods.pretrained import load_pretrained
from labutils.methods.probes import gradient_norms
from labutils.methods.transfer import unfreeze
from labutils.models import MLP, ResNet, ShallowCNN, describe
from labutils.training import CheckpointError, Diverged, History, Interrupted, Training, evaluate, fit, predict

LOADED_WHEN_USED = {
    "plots": "labutils.notebook.plots",
    "diagrams": "labutils.notebook.diagrams",
    "explorers": "labutils.notebook.explorers",
    "exercises": "labutils.notebook.exercises",
    "predictions": "labutils.notebook.predictions",
    "Claims": "labutils.notebook.claims",
    "percent": "labutils.notebook.claims",
    "show_source": "labutils.notebook.showing",
}


def __getattr__(name: str) -> object:
    if name not in LOADED_WHEN_USED:
        raise AttributeError(f"module 'labutils' has no attribute '{name}'")
    module = importlib.import_module(LOADED_WHEN_USED[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted({*globals(), *LOADED_WHEN_USED})
