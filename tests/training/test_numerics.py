import weakref

import pytest
import torch
from torch import nn

import labutils as lab
from labutils.training import OutOfMemory
from labutils.training.numerics import autocast, compute_exactly, direction_type, has_native_bf16, prepare, seeded

CPU = torch.device("cpu")


def test_bf16_is_used_where_it_pays():
    convolution, mlp = nn.Sequential(nn.Conv2d(1, 1, 3)), lab.MLP(2, 16)
    assert isinstance(autocast(convolution, CPU, "auto"), torch.autocast) == has_native_bf16(CPU)
    assert not isinstance(autocast(mlp, CPU, "auto"), torch.autocast)
    assert not isinstance(autocast(convolution, CPU, "fp32"), torch.autocast)
    with autocast(mlp, CPU, "bf16"):
        assert mlp(torch.randn(2, 784)).dtype == torch.bfloat16


def test_a_seed_counts_inside_and_nothing_is_left_of_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's random state was set"))
    before = torch.get_rng_state()
    with seeded(5, CPU):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(5, CPU):
        assert torch.equal(torch.rand(3), first)
    with seeded(6, CPU):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(5)), first)


def test_muons_directions_are_found_in_numbers_that_the_device_multiplies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert direction_type.__wrapped__(CPU) == torch.bfloat16
    assert direction_type.__wrapped__(torch.device("cuda")) == torch.float32
    assert direction_type.__wrapped__(torch.device("mps")) == torch.float32


def test_a_gpu_multiplies_float32_as_such_and_the_same_way_each_time():
    flags = {(backend, name): getattr(backend, name) for backend, name in EXACT}
    try:
        torch.backends.cudnn.benchmark = True
        compute_exactly()
        assert {place: getattr(*place) for place in EXACT} == EXACT
    finally:
        for (backend, name), value in flags.items():
            setattr(backend, name, value)


EXACT = {
    (torch.backends.cudnn, "allow_tf32"): False,
    (torch.backends.cuda.matmul, "allow_tf32"): False,
    (torch.backends.cudnn, "deterministic"): True,
    (torch.backends.cudnn, "benchmark"): False,
}


# As torch words it on an NVIDIA GPU, on an Apple GPU, and on the processor.
MESSAGES = {
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 14.75 GiB of which 1 MiB is free.": (
        torch.OutOfMemoryError,
        "2.50 GiB",
    ),
    "MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB). Tried to allocate 256.00 MB on pool.": (
        RuntimeError,
        "256.00 MB",
    ),
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes.": (
        RuntimeError,
        "40 bytes",
    ),
}


class Greedy(nn.Module):
    """Asks for too much memory at its third call for gradients; `held` is what it had until then."""

    def __init__(self, error):
        super().__init__()
        self.inner, self.error, self.calls, self.held = lab.MLP(1, 4), error, 0, None

    def forward(self, images):
        activations = images * 2
        self.calls += 1
        if self.calls == 3:
            self.held = weakref.ref(activations)
            self.inner.head.weight.grad = torch.ones_like(self.inner.head.weight)  # as half a step leaves it
            raise self.error
        return self.inner(activations)


@pytest.mark.parametrize("message", MESSAGES)
def test_memory_that_runs_out_is_one_line_with_a_remedy_and_free_again(message, few):
    kind, amount = MESSAGES[message]
    model = Greedy(kind(message))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(OutOfMemory, match=f"50 images at once through Greedy on cpu .*{amount} more.*Lower") as caught:
        lab.fit(model, few, lab.Training(epochs=1, batch_size=50), progress=False)
    assert "Lower batch_size or the network's width or depth" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.held() is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))


def test_memory_that_runs_out_in_evaluation_is_said_so_too(few):
    model = Greedy(torch.OutOfMemoryError("CUDA out of memory."))
    model.calls = 2
    with pytest.raises(OutOfMemory, match=r"250 images at once through Greedy on cpu\. Lower the network's width"):
        lab.evaluate(model, "test", few)


def test_other_errors_of_a_model_stay_as_they_are(few):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        lab.fit(Greedy(RuntimeError("mat1 and mat2")), few, lab.Training(epochs=1, batch_size=50), progress=False)


def test_run_and_sweep_say_that_memory_ran_out(store, experiment, monkeypatch):
    def forward(layer, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    with pytest.raises(OutOfMemory, match=r"128 images at once through MLP\(plain.*2.00 GiB.*Lower batch_size"):
        lab.run(experiment, progress=False)
    (error,) = lab.sweep([experiment], jobs=1, progress=False)["error"]
    assert error.startswith("OutOfMemory: out of memory: 128 images")


def test_on_the_processor_torchs_choices_for_gpus_stay_as_they_are():
    before = {place: getattr(*place) for place in EXACT}
    prepare(lab.ResNet((1, 1, 1, 1), width=2), CPU)
    assert {place: getattr(*place) for place in EXACT} == before
