"""Superclasses against what is known of them."""

from collections import Counter

import labutils as lab
from labutils.archives import CLASSES
from labutils.superclasses import superclasses


def test_each_class_of_cifar_100_is_one_of_five_of_its_kind():
    names, kinds = superclasses(CLASSES["cifar100"])
    assert len(names) == 20
    assert set(Counter(kinds.tolist()).values()) == {5}
    by_name = dict(zip(CLASSES["cifar100"], (names[kind] for kind in kinds), strict=True))
    assert by_name["apple"] == "fruit and vegetables"
    assert by_name["lawn_mower"] == "vehicles 2"
    assert by_name["willow"] == "trees"


def test_the_stand_ins_classes_are_of_the_kind_of_their_shape():
    data = lab.load_data("cifar100", source="builtin", limit=200)
    names, kinds = superclasses(data.classes)
    assert len(names) == 10
    assert set(Counter(kinds.tolist()).values()) == {10}
    assert all(name.endswith(names[kind]) for name, kind in zip(data.classes, kinds, strict=True))
