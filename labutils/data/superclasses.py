"""What CIFAR-100's hundred classes are kinds of: twenty superclasses of five (Krizhevsky 2009, table on page 59)."""

from collections.abc import Sequence

import torch

SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household devices": "clock keyboard lamp telephone television",
    "furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "buildings and roads": "bridge castle house road skyscraper",
    "landscapes": "cloud forest mountain plain sea",
    "large herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium mammals": "fox porcupine possum raccoon skunk",
    "invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple oak palm pine willow",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
KINDS = {name: superclass for superclass, names in SUPERCLASSES.items() for name in names.split()}


def superclasses(classes: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """The superclasses of a data set's classes, and the number of each class's one, (classes,) int64.

    A class of the stand-in is of the kind of its shape, the last word of its name.
    """
    kinds = [KINDS.get(name, name.rpartition(" ")[2]) for name in classes]
    names = sorted(set(kinds))
    return names, torch.tensor([names.index(kind) for kind in kinds])
