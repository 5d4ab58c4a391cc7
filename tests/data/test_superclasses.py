"""Superclasses against what is known of them."""

from collections import Counter

from labutils.data import archives, standins
from labutils.data.superclasses import superclasses


def test_each_class_of_cifar_100_is_one_of_five_of_its_kind():
    names, kinds = superclasses(archives.CLASSES["cifar100"])
    assert len(names) == 20
    assert set(Counter(kinds.tolist()).values()) == {5}
    by_name = dict(zip(archives.CLASSES["cifar100"], (names[kind] for kind in kinds), strict=True))
    assert by_name["apple"] == "fruit and vegetables"
    assert by_name["lawn_mower"] == "vehicles 2"
    assert by_name["willow"] == "trees"


def test_the_stand_ins_classes_are_of_the_kind_of_their_shape():
    classes = standins.CLASSES["cifar100"]
    names, kinds = superclasses(classes)
    assert len(names) == 10
    assert set(Counter(kinds.tolist()).values()) == {10}
    assert all(name.endswith(names[kind]) for name, kind in zip(classes, kinds, strict=True))
