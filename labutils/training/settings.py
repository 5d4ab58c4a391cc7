"""How a model is trained: the settings of `fit`."""

from dataclasses import dataclass

from labutils.data.augmentation import AUGMENTATIONS
from labutils.errors import SettingError, check_choice, check_flag, check_number, check_whole

OPTIMIZERS = ("adam", "adamw", "sgd", "muon")
SCHEDULERS = (None, "cosine", "plateau", "onecycle", "triangular")
PRECISIONS = ("auto", "fp32", "bf16")
MOST_EPOCHS, LARGEST_BATCH = 1_000_000, 10_000_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that only the course's strongest recipes use; until notebook 03 they can be left alone.

    Args:
        whitening: whether a CNN's first filters start as the directions in which the training images' patches
            differ most (see labutils.models.shallow.whiten_stem), instead of at random.
        averaging: decay of an exponential moving average (EMA) of the weights, from 0 to below 1: it spans about
            1 / (1 - averaging) steps, and is what is validated and kept (after Polyak & Juditsky 1992). 0: none.
        stage_lr: factor on a CNN's learning rate from each stage to the one before it, above 0 to 1; the head learns at
            lr (Howard & Ruder 2018, "Universal language model fine-tuning", discriminative rates).
        head_lr: factor on the learning rate of the head, above 0, for a new head on a trained network.
    """

    whitening: bool = False
    averaging: float = 0.0
    stage_lr: float = 1.0
    head_lr: float = 1.0

    def __post_init__(self):
        check_flag("whitening", self.whitening)
        check_number("averaging", self.averaging, 0, 1, open_ends="high")
        check_number("stage_lr", self.stage_lr, 0, 1, open_ends="low")
        check_number("head_lr", self.head_lr, 0, open_ends="low")


@dataclass(frozen=True)
class Training(Recipe):
    """How a model is trained.

    Args:
        epochs: passes over the training images, from 1.
        batch_size: images a step, from 1.
        optimizer: adam (Kingma & Ba 2015), adamw (Loshchilov & Hutter 2019), sgd or muon (Jordan et al. 2024).
        lr: learning rate, above 0; with onecycle and triangular the highest one.
        momentum: of sgd and muon, from 0 to below 1.
        weight_decay: from 0. Added to the gradient by adam and sgd, decoupled from it by adamw and muon.
        scheduler: None keeps the learning rate; cosine lowers it towards 0 epoch by epoch; plateau halves it
            whenever the validation loss (without a validation split, the training loss) has not improved for more than
            2 epochs; onecycle raises and lowers it step by step (Smith & Topin 2019), along a cosine; triangular does
            so along straight lines.
        patience: stop after so many epochs without a better validation accuracy, or an equal one at a lower loss; None
            never stops early.
        label_smoothing: share of each label spread over all classes, from 0 to below 1.
        augment: None, basic (random crops from a margin of 4 pixels, and flips), mild (a margin of 2), slight (mild,
            and flips every other epoch) or strong (basic, jitter of colour and shape, and cutout).
        precision: fp32, bf16 (autocast), or auto: bf16 where the hardware multiplies it natively and it pays.
        seed: of the order of the batches, augmentation and dropout; `run` also draws the initial weights from it.
        whitening, averaging, stage_lr, head_lr: see Recipe.

    Raises:
        SettingError: an argument that is not allowed.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    scheduler: str | None = None
    patience: int | None = None
    label_smoothing: float = 0.0
    augment: str | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_whole("epochs", self.epochs, 1, MOST_EPOCHS)
        check_whole("batch_size", self.batch_size, 1, LARGEST_BATCH)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_number("lr", self.lr, 0, open_ends="low")
        check_number("momentum", self.momentum, 0, 1, open_ends="high")
        check_number("weight_decay", self.weight_decay, 0)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
        check_number("label_smoothing", self.label_smoothing, 0, 1, open_ends="high")
        check_choice("augment", self.augment, AUGMENTATIONS)
        if self.optimizer == "muon" and self.stage_lr != 1:
            raise SettingError("stage_lr", self.stage_lr, "1 with muon, whose steps are shares of the weights' lengths")
        check_choice("precision", self.precision, PRECISIONS)
        check_whole("seed", self.seed, 0)
