"""The automatic checks of the notebooks' exercises. Each says what is right, or the first thing that is not."""

from labutils.notebook.exercises.cnn import check_activation_maps, check_convolution_cost, check_receptive_field
from labutils.notebook.exercises.distillation import (
    check_calibration_error,
    check_distillation_loss,
    check_temperature,
)
from labutils.notebook.exercises.mlp import check_choice_of_model, check_floor, check_parameters
from labutils.notebook.exercises.residual import check_growth, check_last_depth, check_plain_rate
from labutils.notebook.exercises.transfer import check_labels_saved, check_nearest_mean, check_new_head
from labutils.notebook.exercises.verdict import Verdict

__all__ = [
    "Verdict",
    "check_activation_maps",
    "check_calibration_error",
    "check_choice_of_model",
    "check_convolution_cost",
    "check_distillation_loss",
    "check_floor",
    "check_growth",
    "check_labels_saved",
    "check_last_depth",
    "check_nearest_mean",
    "check_new_head",
    "check_parameters",
    "check_plain_rate",
    "check_receptive_field",
    "check_temperature",
]
