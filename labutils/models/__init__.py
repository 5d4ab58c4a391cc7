"""The course's networks: MLP, ResNet, ShallowCNN, each with features(images) and a linear head."""

from labutils.models.building import MODELS, build_model
from labutils.models.counting import describe, parameter_count
from labutils.models.mlp import MLP, HiddenLayer
from labutils.models.resnet import CNN, BasicBlock, ResNet
from labutils.models.shallow import ShallowCNN
