"""What a model is: the course's classes by their versions, a student's own by what it computes."""

import ast
import copy
import hashlib
import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

import labutils as lab
from labutils.files import canonical, identity
from labutils.identity import VERSIONS, behaviour, model_identity, version
from labutils.methods.transfer import transferred
from labutils.models import mlp

SHAPE = (1, 4, 4)

# The course's classes: the version and the digest of the code (see `code_digest`) that the version was given to.
KNOWN = {
    lab.MLP: (1, "880d8d98fffa0ec9"),
    lab.ResNet: (1, "e61837796a6e8e08"),
    lab.ShallowCNN: (2, "621296afe41a6c72"),
}


def code_digest(*sources: str) -> str:
    """The first digits of the SHA-256 of some modules' syntax trees, without their docstrings."""
    trees = [ast.parse(source) for source in sources]
    for node in (node for tree in trees for node in ast.walk(tree)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and is_text(body[0].value):
            del body[0]
    return hashlib.sha256(repr([plain(tree) for tree in trees]).encode()).hexdigest()[:16]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def plain(node: object) -> object:
    """A syntax tree as ast.dump shows it, but the same in each version of Python: without fields that hold nothing."""
    if isinstance(node, list):
        return [plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return (type(node).__name__, *fields)


def sources_of(kind: type) -> list[str]:
    """The sources of the modules in which a class and those it inherits from are written."""
    modules = {inspect.getmodule(parent) for parent in kind.__mro__ if parent.__module__.startswith("labutils.")}
    return [inspect.getsource(module) for module in sorted(modules, key=lambda module: module.__name__)]


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_the_versions_of_the_courses_classes_belong_to_their_code(kind):
    found = (VERSIONS[kind], code_digest(*sources_of(kind)))
    assert found == KNOWN[kind], (
        f"the code of {kind.__name__} is not that which version {KNOWN[kind][0]} was given to. If what the class "
        "computes has changed, raise its version in labutils/identity.py, and write both here. If only the "
        f"layout of the code has, write the new digest here: {found[1]!r}"
    )


def test_each_class_of_the_course_has_a_version():
    from labutils.models import MODELS

    assert set(VERSIONS) == set(MODELS.values()) == set(KNOWN)


CODE = '''
class Net:
    """A net."""

    def forward(self, x):
        """Logits."""
        return self.head(x + 1)
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""A net."""', '"""Another\n\n    docstring."""', True),
        ('        """Logits."""\n', "", True),
        ("return self", "# why\n        return self", True),
        ("(x + 1)", "(\n            (x + 1),\n        )", True),
        ("x + 1", "x + 2", False),
        ("x + 1", "x - 1", False),
        ("self.head", "self.tail", False),
        ("return self", "x = 2 * x\n        return self", False),
        ('"""Logits."""', 'print("""Logits.""")', False),
    ],
)
def test_comments_docstrings_and_layout_do_not_count_in_a_digest_and_code_does(old, new, same):
    changed = CODE.replace(old, new)
    assert changed != CODE
    assert (code_digest(changed) == code_digest(CODE)) == same


# Models of the course


@pytest.mark.parametrize(
    "changed",
    [
        lab.MLP(3, 5),
        lab.MLP(2, 5, residual=True),
        lab.MLP(2, 5, activation="tanh"),
        lab.MLP(2, 5, dropout=0.5),
        lab.MLP(2, 5, classes=9),
        lab.MLP(2, 5).requires_grad_(False),
    ],
    ids=repr,
)
def test_a_model_of_the_course_is_its_settings_and_what_is_frozen(changed):
    def named(model):
        return identity(model=model_identity(model, (1, 28, 28)))

    torch.manual_seed(0)
    assert named(lab.MLP(2, 5)) == named(lab.MLP(2, 5))
    assert named(changed) != named(lab.MLP(2, 5))


def test_features_depend_on_all_but_the_head():
    def named(model):
        return canonical(model_identity(model, (1, 28, 28), head=False))

    expected = named(lab.MLP(2, 5))
    assert named(lab.MLP(2, 5, classes=3)) == expected
    other = lab.MLP(2, 5)
    other.head = nn.Sequential(other.head)
    assert named(other) == expected
    assert named(lab.MLP(2, 5, residual=True)) != expected


def test_a_module_that_was_put_in_anothers_place_counts():
    changed = lab.MLP(2, 5)
    changed.layers[1].activation = nn.Tanh()
    for head in (True, False):
        found, expected = (canonical(model_identity(m, (1, 28, 28), head=head)) for m in (changed, lab.MLP(2, 5)))
        assert found != expected


def test_an_instance_with_a_forward_of_its_own_counts_by_what_it_computes():
    model = lab.MLP(2, 5, in_features=16)
    assert "behaviour" not in model_identity(model, SHAPE)
    model.forward = lambda images: -lab.MLP.forward(model, images)
    assert "behaviour" in model_identity(model, SHAPE)


class Linear(nn.Linear):
    """A student's, of the same name and shape as PyTorch's."""

    def forward(self, x):
        return super().forward(x).abs()


def other_slope(model):
    model.layers[0].activation = nn.LeakyReLU(0.1)


def steeper_slope(model):
    model.layers[0].activation = nn.LeakyReLU(0.9)


def other_scale(model):
    model.layers[1].residual_scale = 0.1


def other_linear(model):
    weights = model.layers[0].linear.state_dict()
    model.layers[0].linear = Linear(16, 5)
    model.layers[0].linear.load_state_dict(weights)


def own_forward_inside(model):
    model.layers[0].forward = lambda x: x[:, :5]


def hook(model):
    model.layers[0].register_forward_hook(lambda module, inputs, output: 3 * output)


def hook_at_the_head(model):
    model.head.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))


CHANGES = (other_slope, steeper_slope, other_scale, other_linear, own_forward_inside, hook, hook_at_the_head)


def test_a_model_of_the_course_that_was_changed_counts_by_what_it_computes():
    found = set()
    for change in CHANGES:
        model = lab.MLP(2, 5, residual=True, in_features=16)
        change(model)
        found.add(model_identity(model, SHAPE)["behaviour"])
    assert len(found) == len(CHANGES)


@pytest.mark.parametrize("head", [True, False])
def test_a_model_as_its_class_makes_it_counts_by_its_version(head):
    trained = lab.ResNet((1, 1, 1, 1), width=2, in_channels=1)
    made = [lab.MLP(2, 5, residual=True, residual_scale="zero", init=2, in_features=16), lab.ShallowCNN((2, 2, 2))]
    for model in (*made, trained, transferred(trained, 7), lab.unfreeze(trained, 1).train()):
        assert "version" in model_identity(model, SHAPE, head=head)


def test_a_class_of_the_course_that_was_changed_has_no_version(monkeypatch, digits):
    experiment = lab.Experiment.load("mlp_mnist", profile="smoke")
    patches = [
        (lab.MLP, "features", lambda self, images: images.flatten(1)[:, :5]),
        (mlp.HiddenLayer, "forward", lambda self, x: x),
        (mlp, "HiddenLayer", Linear),
    ]
    for where, name, replacement in patches:
        before = lab.MLP(2, 5, in_features=16)
        with monkeypatch.context() as patch:
            patch.setattr(where, name, replacement)
            with pytest.raises(lab.SettingError, match=r"MLP, changed .* model="):
                version(lab.MLP)
            with pytest.raises(lab.SettingError, match="changed"):
                experiment.identity(digits)
            if name == "features":  # the others leave a net that can't answer
                assert "behaviour" in model_identity(before, SHAPE)
        assert version(lab.MLP) == 1


# A student's models


class Student(nn.Module):
    """A small net with a normalization, a skip and dropout, whose parts can be changed."""

    def __init__(self, *, activation=torch.relu, dropout=0.0, classes=3):
        super().__init__()
        self.first, self.norm = nn.Linear(16, 6), nn.BatchNorm1d(6)
        self.second, self.head = nn.Linear(6, 6), nn.Linear(6, classes)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def features(self, images):
        hidden = self.activation(self.norm(self.first(images.flatten(1))))
        return self.dropout(self.activation(hidden + self.second(hidden)))

    def forward(self, images):
        return self.head(self.features(images))


class Renamed(nn.Module):
    """The same, written otherwise."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def features(self, x):
        x = torch.flatten(x, start_dim=1)
        x = self.norm(self.first(x)).clamp(min=0)
        y = self.second(x)
        return nn.functional.relu(y + x)

    def forward(self, x):
        x = self.features(x)
        return x @ self.head.weight.T + self.head.bias


class OtherForward(Student):
    def forward(self, images):
        return 2 * super().forward(images)


class OtherFeatures(Student):
    def forward(self, images):
        return self.head(super().features(images))

    def features(self, images):
        return super().features(images) + 1


class SkipAfterActivation(Student):
    def features(self, images):
        hidden = self.activation(self.norm(self.first(images.flatten(1))))
        return hidden + self.activation(self.second(hidden))


class WithoutSkip(Student):
    def features(self, images):
        hidden = self.activation(self.norm(self.first(images.flatten(1))))
        return self.activation(self.second(hidden))


class OtherInTrainingAlone(Student):
    def forward(self, images):
        return super().forward(images) * (2 if self.training else 1)


class Detached(Student):
    """The same answers, another gradient."""

    def features(self, images):
        hidden = self.activation(self.norm(self.first(images.flatten(1))))
        return self.activation(hidden + self.second(hidden).detach())


class Float32(Student):
    """Makes float32 tensors of its own."""

    def forward(self, images):
        return super().forward(images) @ torch.eye(3)


class OtherFloat32(Student):
    def forward(self, images):
        return super().forward(images) @ torch.eye(3).flip(0)


@pytest.fixture(scope="module")
def expected():
    return behaviour(Student(), SHAPE)


def test_an_equal_class_behaves_alike_whatever_its_name_and_layout(expected):
    assert behaviour(Renamed(), SHAPE) == expected
    assert behaviour(Student(dropout=0.0), SHAPE) == expected


@pytest.mark.parametrize(
    "changed",
    [
        OtherForward(),
        OtherFeatures(),
        SkipAfterActivation(),
        WithoutSkip(),
        OtherInTrainingAlone(),
        Detached(),
        Student(activation=torch.tanh),
        Student(activation=nn.functional.leaky_relu),
        Student(activation=nn.functional.relu6),
        Student(dropout=0.2),
        Student(classes=4),
        Float32(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_class_that_computes_something_else_behaves_otherwise(changed, expected):
    if isinstance(changed, Float32):
        changed, expected = OtherFloat32(), behaviour(changed, SHAPE)
    assert behaviour(changed, SHAPE) != expected


def test_another_dropout_is_another_behaviour():
    assert behaviour(Student(dropout=0.2), SHAPE) != behaviour(Student(dropout=0.3), SHAPE)


@pytest.mark.parametrize("kind", [Student, Float32])
def test_weights_do_not_count_trained_or_not(kind, digits):
    class Larger(kind):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(784, 6), nn.Linear(6, 10)

        def forward(self, images):
            logits = self.head(self.features(images))
            return logits + torch.eye(10)[0] if kind is Float32 else logits

    model = Larger()
    before = behaviour(model, digits.image_shape)
    lab.fit(model, digits, lab.Training(epochs=1, batch_size=64, lr=0.01), progress=False)
    assert behaviour(model, digits.image_shape) == before


def test_a_cumulative_normalization_does_not_count_its_batches():
    model = Student()
    model.norm = nn.BatchNorm1d(6, momentum=None)
    before = behaviour(model, SHAPE)
    model.train()(torch.randn(4, *SHAPE))
    assert behaviour(model, SHAPE) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Student, Float32])
def test_what_is_asked_stays_as_it_is(kind, training, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's random state was set"))
    model = kind(dropout=0.5).train(training)
    model(torch.randn(4, *SHAPE)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    behaviour(model, SHAPE)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training == training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(gradients, (p.grad for p in model.parameters()), strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_it_does_not_depend_on_whether_gradients_are_wanted(expected):
    with torch.no_grad():
        assert behaviour(Student(), SHAPE) == expected


ELSEWHERE = """
import torch
from torch import nn
from labutils.identity import behaviour

{student}

torch.set_num_threads(2)
torch.manual_seed(99)
print(behaviour(Student(dropout=0.2), (1, 4, 4)))
"""


def test_it_is_the_same_in_another_process_with_other_threads():
    program = ELSEWHERE.replace("{student}", inspect.getsource(Student))
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == behaviour(Student(dropout=0.2), SHAPE)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_wide_net_behaves_alike_with_any_number_of_threads(threads, one_thread):
    """Wide enough that its products are split among threads."""

    def wide():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 10))

    expected = behaviour(wide(), (1, 28, 28))
    torch.set_num_threads(threads)
    assert behaviour(wide(), (1, 28, 28)) == expected
