"""What the notebooks have their readers build, and the exercises: a check for each.

A check says what is right, or names the first thing that is not. `or_else` of its verdict goes on with what labutils or
PyTorch has, for whoever has not solved it; `ours` holds what neither has in the form that is asked for.
"""

from labutils.notebook.exercises import ours
from labutils.notebook.exercises.cnn import (
    check_activation_maps,
    check_batch_norm,
    check_convolution,
    check_convolution_cost,
    check_one_cycle,
    check_receptive_field,
    check_residual_block,
)
from labutils.notebook.exercises.distillation import (
    check_cached_teacher,
    check_calibration_error,
    check_distillation_gradient,
    check_distillation_loss,
    check_temperature,
    check_temperature_scaling,
)
from labutils.notebook.exercises.mlp import (
    check_choice_of_model,
    check_cross_entropy,
    check_floor,
    check_layer_backward,
    check_mlp,
    check_parameters,
    check_train_epoch,
)
from labutils.notebook.exercises.residual import (
    check_gradient_norms,
    check_growth,
    check_he_weights,
    check_last_depth,
    check_lesion,
    check_plain_rate,
    check_rate,
    check_residual_layer,
)
from labutils.notebook.exercises.transfer import (
    check_freeze,
    check_knn,
    check_labels_saved,
    check_nearest_mean,
    check_new_head,
    check_probe,
)
from labutils.notebook.exercises.verdict import Verdict
