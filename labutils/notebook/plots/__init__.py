"""The figures of the course, drawn from DataFrames.

Accuracies come in as fractions from 0 to 1 and are drawn as percentages. A plain network is always drawn in the colour
PLAIN, a residual one in RESIDUAL. Every figure states its data below itself.
"""

from labutils.notebook.plots.curves import (
    accuracy_against,
    accuracy_by_depth,
    epochs,
    gradient_profiles,
    lesions,
)
from labutils.notebook.plots.images import activation_maps, feature_maps, image_grid, loss_surfaces
from labutils.notebook.plots.live import EARLIER_PROFILES, LiveAnswers, LiveProfile, history, scores
from labutils.notebook.plots.points import accuracies, accuracies_by_group, ladder, reliability
from labutils.notebook.plots.selection import matching, origin
from labutils.notebook.plots.style import PLAIN, RESIDUAL, Chart
from labutils.notebook.plots.tables import confusion_matrix, depth_width_heatmap, gains, gradient_heatmaps
