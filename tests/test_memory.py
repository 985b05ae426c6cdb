"""`bench.py --plan`'s memory against the trainer's own forward, backward and optimizer step at the real size.

torch's fake mode runs every operation without its numbers, and a fake process group stands for the other ranks, so the
1.5B model's step on a full pack takes seconds here. What is counted is every storage that PyTorch would hold; not
counted are the allocator's gaps, CUDA, NCCL and the sampler. Of a GPU's own kernels two are put in their place:
attention, whose operator has a fake kernel, and the fused RMSNorm, which on a CPU are several operations.
"""

import weakref
from dataclasses import fields, replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_grpo
from model import DTYPES, Qwen2
from training import memory, packing, plan
from training.packing import Batch, Minibatch
from training.smoke import worst_pack

SMALL = 2**15  # bytes: norms, biases and the like, which are left out
HEAD, LAYER, ROOT, OPTIMIZER = memory.TRAINER_MOMENTS
REFERENCE = "reference"


class PeakByMoment(TorchDispatchMode):
    """The most bytes in storages of a fake mode's tensors, for each value that `moment` has had."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake, self.moment = fake, ""
        self.peaks: dict[str, int] = {}
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not all(issubclass(t, (FakeTensor, torch.nn.Parameter)) for t in types):
            return NotImplemented  # a DTensor calls the operations on its local tensor, which come here again
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0  # the gradient norm, the only number that the trainer reads
        out = func(*args, **(kwargs or {}))
        self.count(out)
        return out

    def count(self, tensors) -> None:
        new = False
        for t in tree_leaves(tensors):
            if isinstance(t, FakeTensor) and t.fake_mode is self.fake:
                storage, key = t.untyped_storage(), t.untyped_storage()._cdata
                if key not in self.storages and storage.nbytes() >= SMALL:
                    new, self.storages[key] = True, weakref.ref(storage)
                    weakref.finalize(storage, self.storages.pop, key, None)
        if new and self.moment:
            # All sizes anew, since FSDP2 frees gathered weights by resizing their storages to nothing.
            held = sum(storage().nbytes() for storage in list(self.storages.values()))
            self.peaks[self.moment] = max(self.peaks.get(self.moment, 0), held)


class FusedRMSNorm(torch.autograd.Function):
    """What the GPU's kernel takes and keeps: the input, and a float32 scale of each row."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), None


def new_model(job: memory.Job, dtype: torch.dtype, mesh: DeviceMesh) -> Qwen2:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # since `.to(dtype)` does not work in fake mode
    model = Qwen2(job.model.config)
    torch.set_default_dtype(default)
    model.shard(mesh, DTYPES[job.cfg.dtype])
    model.backend = "torch_varlen"
    return model


def follow_moments(model: Qwen2, counted: PeakByMoment) -> None:
    """The backward pass is done with the head when the final norm's output has its gradient, and with the layers when
    the embedding's output has."""

    def at_gradient_of_output(module: nn.Module, moment: str) -> None:
        def enter(grad: Tensor) -> None:
            counted.moment = moment

        def after_forward(module: nn.Module, args: tuple, out: Tensor) -> None:
            counted.moment = HEAD  # the forward pass counts with the head's backward pass, which follows it
            out.register_hook(enter)

        module.register_forward_hook(after_forward)

    at_gradient_of_output(model.model.embed_tokens, ROOT)
    at_gradient_of_output(model.model.norm, LAYER)


def fake_pack(job: memory.Job, fake: FakeTensorMode) -> Batch:
    b = worst_pack(job.cfg, job.model.vocab_size, torch.device("cpu"))
    tensors = {f.name: getattr(b, f.name) for f in fields(b) if isinstance(getattr(b, f.name), Tensor)}
    return replace(b, **{name: fake.from_tensor(tensor) for name, tensor in tensors.items()})


def measured(job: memory.Job) -> dict[str, int]:
    """moment -> bytes, on a micro-batch that is not the first of a step that is not the first; before it the
    reference's pass, if there is one, and at the end the optimizer's step."""
    cfg, mesh, fake = job.cfg, packing.device_mesh(job.cfg, torch.device("cpu")), FakeTensorMode()
    b, batches = fake_pack(job, fake), 1
    minibatch = Minibatch([], cfg.token_budget, 4, cfg.max_response_len[0])
    with fake, PeakByMoment(fake) as counted:
        model = new_model(job, torch.float32, mesh)
        model.set_activation_checkpointing(cfg.activation_checkpointing)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)  # as on a GPU, where it is the default
        for p in model.parameters():
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            optimizer.state[p] = {"step": torch.zeros(()), **moments}
            p.grad = torch.zeros_like(p)
        if cfg.shard_size:  # HSDP keeps what it has not yet summed over the replicas elsewhere than in `grad`
            optimizer.zero_grad()
            batches = 2
        if cfg.kl_coef:
            reference = new_model(job, DTYPES[cfg.dtype], mesh).requires_grad_(False)
            counted.moment = REFERENCE
            b = replace(b, ref_logprobs=packing.fixed_logprobs(reference, [b], cfg)[0])
        follow_moments(model, counted)
        train_grpo.backward(model, batches * [b], minibatch, cfg)
        if cfg.kl_coef:  # in one case only, since the sharding of its operations takes DTensor seconds
            counted.moment = OPTIMIZER
            train_grpo.optimizer_step(model, optimizer, 0.0, cfg)
    return counted.peaks


@pytest.fixture
def stand_ins(monkeypatch) -> None:
    monkeypatch.setattr("kernels.norm._RMSNorm", FusedRMSNorm)
    # DTensor works out its results' shapes with whole tensors in the fake mode it finds: with none, in one of its own,
    # and they are not counted.
    monkeypatch.setattr("torch.distributed.tensor._sharding_prop.detect_fake_mode", lambda: None)


CASES = [
    "",
    "--kl_coef=0 --activation_checkpointing=false",
    "--kl_coef=0 --gpus=32",
    "--kl_coef=0 --gpus=32 --shard_size=8",
    "--kl_coef=0 --model=Qwen/Qwen2.5-0.5B-Instruct",  # its head is the embedding
]


@pytest.mark.parametrize("flags", CASES)
def test_the_plan_is_what_the_trainer_holds(flags, stand_ins):
    """At 32,768 tokens in bfloat16: 3 sequences of 9,216 and the rest."""
    (job,) = plan.stages(["configs/8k.py", "--gpus=8", *flags.split()])
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=job.gpus)
    try:
        peaks = measured(job)
    finally:
        dist.destroy_process_group()
    reference = peaks.pop(REFERENCE, 0)
    assert reference < peaks[HEAD]  # so the plan needs no column for it
    parts = [part for name, part in memory.bytes_by_part(job).items() if not name.startswith(("CUDA", "vLLM"))]
    for moment, peak in peaks.items():
        assert sum(part.get(moment, 0) for part in parts) == pytest.approx(peak, rel=0.025), moment
    assert {HEAD, LAYER, ROOT} <= set(peaks) and (OPTIMIZER in peaks) == bool(job.cfg.kl_coef)
