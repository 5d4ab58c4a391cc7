"""labutils: the package behind the deep-learning labs.

    import labutils as lab

    data = lab.load_data("mnist")
    model = lab.MLP(depth=5, width=64)
    history = lab.fit(model, data, lab.Training(epochs=3))
    lab.evaluate(model, "test", data)

What needs a plotting, widget or notebook library is in modules of its own, loaded when first used: lab.plots,
lab.widgets, lab.teaching, lab.exercises.
"""

import importlib
from types import ModuleType

from labutils.archives import ArchiveError, DownloadError
from labutils.backbones import load_backbone
from labutils.checkpoints import CheckpointError
from labutils.data import ImageData, Split, StandInWarning, batches, load_data
from labutils.distillation import Distillation, distillation_loss
from labutils.errors import SettingError
from labutils.experiment import Experiment, grid
from labutils.extraction import extract_features, extract_logits
from labutils.models import MLP, ResNet, ShallowCNN, describe, parameter_count
from labutils.probes import (
    activation_gradients,
    calibration,
    calibration_error,
    class_activation_maps,
    gradient_correlation,
    gradient_norms,
    lesion_study,
    loss_surface,
    mean_field_rate,
    rate_per_layer,
)
from labutils.results import load_results
from labutils.runs import DamagedRun, Run, StoreError, run
from labutils.stacks import fit_stack
from labutils.sweeps import sweep
from labutils.tracking import Tracking
from labutils.training import Diverged, History, Training, evaluate, fit, predict
from labutils.transfer import Transfer, knn, linear_probe, linear_svm, transferred, unfreeze
from labutils.workers import ClusterError

__all__ = [
    "MLP",
    "ArchiveError",
    "CheckpointError",
    "ClusterError",
    "DamagedRun",
    "Distillation",
    "Diverged",
    "DownloadError",
    "Experiment",
    "History",
    "ImageData",
    "ResNet",
    "Run",
    "SettingError",
    "ShallowCNN",
    "Split",
    "StandInWarning",
    "StoreError",
    "Tracking",
    "Training",
    "Transfer",
    "activation_gradients",
    "batches",
    "calibration",
    "calibration_error",
    "class_activation_maps",
    "describe",
    "distillation_loss",
    "evaluate",
    "exercises",
    "extract_features",
    "extract_logits",
    "fit",
    "fit_stack",
    "gradient_correlation",
    "gradient_norms",
    "grid",
    "knn",
    "lesion_study",
    "linear_probe",
    "linear_svm",
    "load_backbone",
    "load_data",
    "load_results",
    "loss_surface",
    "mean_field_rate",
    "parameter_count",
    "plots",
    "predict",
    "rate_per_layer",
    "run",
    "sweep",
    "teaching",
    "transferred",
    "unfreeze",
    "widgets",
]

LOADED_WHEN_USED = ("exercises", "plots", "teaching", "widgets")


def __getattr__(name: str) -> ModuleType:
    if name in LOADED_WHEN_USED:
        return importlib.import_module(f"labutils.{name}")
    raise AttributeError(f"module 'labutils' has no attribute '{name}'")
