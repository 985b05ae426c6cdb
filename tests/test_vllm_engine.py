"""How an engine of vLLM is started, put to sleep and closed on a GPU, by what vLLM is told: a stand-in takes the place
of the package, since its CPU build cannot sleep. The real engine is in test_vllm.py."""

import atexit
import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from configs import load_config
from model import ModelConfig, Qwen2
from rollout import make_sampler


class GPUModelRunner:
    __module__ = "vllm.v1.worker.gpu.model_runner"

    def __init__(self, path):
        self.model = Qwen2(ModelConfig.from_folder(path))

    def get_model(self):
        return self.model


class LLM:
    """vllm.LLM: remembers what it is told."""

    def __init__(self, path, **options):
        self.options, self.calls = options, []
        worker = SimpleNamespace(worker=SimpleNamespace(model_runner=GPUModelRunner(path)))
        core = SimpleNamespace(shutdown=lambda: self.calls.append("shutdown"))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker), engine_core=core)

    def sleep(self, level):
        self.calls.append(("sleep", level))

    def wake_up(self, tags=None):
        self.calls.append(("wake_up", tags))

    def generate(self, requests, params, use_tqdm):
        logprobs = SimpleNamespace(logprobs=[0.0])
        completion = SimpleNamespace(token_ids=[1], logprobs=logprobs, finish_reason="stop")
        return [SimpleNamespace(num_cached_tokens=0, outputs=[completion])] * len(requests)

    def collective_rpc(self, method, kwargs):
        list(kwargs["weights_iterator"])
        self.calls.append(method)

    def reset_prefix_cache(self):
        return True


@pytest.fixture
def vllm(monkeypatch, group_of_one):
    """The stand-in, as the module that `import vllm` finds."""
    module = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, module.__version__ = LLM, SimpleNamespace, "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", module)


def gpu_engine(path, *flags, **options):
    cfg = load_config(["configs/tiny.py", "--sampler=vllm", "--device=auto", *flags])
    engine = make_sampler(cfg, path, torch.device("cuda"), 64, **options)
    return engine, engine.llm


@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_beside_a_trainer_sleeps_and_is_awake_when_it_is_shut_down(vllm, tiny_model_dir, level):
    """Whatever of it was still asleep; vLLM on CUDA would release the memory of a sleeping one twice."""
    engine, llm = gpu_engine(tiny_model_dir, f"--vllm_sleep_level={level}")
    assert llm.options["enable_sleep_mode"] and llm.calls == [("sleep", level)]
    engine.sleep()
    weights = {name: torch.zeros(shape) for name, shape in engine.shapes.items()}
    engine.wake()
    engine.load_weights(weights.items())
    assert llm.calls[1:] == [("wake_up", ["weights"]), "reload_weights", ("wake_up", ["kv_cache"])]
    engine.generate([[0]], [[0]], 1, 1.0, 1.0)
    engine.sleep()
    engine.wake()  # the weights alone
    del llm.calls[:]
    engine.close()
    assert llm.calls == [("wake_up", None), "shutdown"]


def test_an_awake_engine_is_shut_down_as_it_is(vllm, tiny_model_dir):
    engine, llm = gpu_engine(tiny_model_dir)
    engine.wake()
    engine.generate([[0]], [[0]], 1, 1.0, 1.0)
    del llm.calls[:]
    engine.close()
    assert llm.calls == ["shutdown"]


def test_an_engine_that_nobody_closes_is_closed_when_the_process_ends(vllm, tiny_model_dir, monkeypatch):
    """A run that is refused or stopped leaves it asleep, and vLLM's own handlers would shut it down so. Python calls
    the handler that was registered last first."""
    handlers = []
    monkeypatch.setattr(atexit, "register", handlers.append)
    monkeypatch.setattr(atexit, "unregister", handlers.remove)
    engine, llm = gpu_engine(tiny_model_dir)
    assert len(handlers) == 1
    handlers[-1]()
    assert llm.calls == [("sleep", 1), ("wake_up", None), "shutdown"] and not handlers


def test_an_engine_without_a_trainer_stays_awake(vllm, tiny_model_dir):
    engine, llm = gpu_engine(tiny_model_dir, "--vllm_sleep_level=2", beside_trainer=False)
    engine.sleep()
    engine.wake()
    engine.generate([[0]], [[0]], 1, 1.0, 1.0)
    engine.close()
    assert not llm.options["enable_sleep_mode"] and llm.calls == ["shutdown"]
