"""The plan's time model on a CPU: its arithmetic with made-up rates; what the section says and refuses."""

import math
from dataclasses import replace

import pytest

import bench
from configs import UserError, load_config
from model import ModelConfig
from runs import flags
from training import plan, predict

INSTANT = predict.Rates(math.inf, math.inf, math.inf, math.inf, cached_token=0, decode_step=0)
FLAGS = ["configs/tiny.py", "--max_num_seqs=3", "--kl_coef=0.1", "--minibatches=4"]
PROMPT, LENGTHS = 5, [4, 9, 2, 7]


def predicted(rates: predict.Rates, *more: str, trained: int = 4) -> dict[str, float]:
    raw = plan.R1_DISTILL | dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100)
    raw |= dict(num_attention_heads=4)
    model = plan.without_weights(ModelConfig.from_dict(raw))
    return predict.predicted(load_config([*FLAGS, *more]), model, rates, PROMPT, LENGTHS, trained)


def test_each_kind_of_work_takes_its_own_rate():
    attended = 64 * (64 + 2 * 32 + 64)  # q; k and v, of two heads of four; o
    token = 2 * (2 * (attended + 3 * 64 * 128) + 100 * 64)  # FLOPs of the products
    packed = [PROMPT + n - 1 for n in LENGTHS]
    forward = predicted(replace(INSTANT, forward=1.0))
    assert forward["logprobs"] == pytest.approx(1.75 * sum(packed) * token) and forward["train"] == 0
    # Three live in the first 2 steps, and until the last of four ends: the others' tokens cost what a pack's do.
    live = [sum(a <= step < b for a, b in ((0, 4), (0, 9), (0, 2), (2, 9))) for step in range(9)]
    assert forward["rollout"] == pytest.approx(sum(n - 1 for n in live) * token)
    backward = predicted(replace(INSTANT, backward=1.0))
    assert backward == {"rollout": 0, "logprobs": 0, "train": pytest.approx(sum(packed) * (3 * token + 2 * 100 * 64))}
    attention = predicted(replace(INSTANT, attention=1.0))
    pairs = 2 * 2 * 64 * sum(n * n for n in packed)
    assert attention["logprobs"] == pytest.approx(1.75 * pairs) and attention["train"] == pytest.approx(3.5 * pairs)
    steps = predicted(replace(INSTANT, decode_step=1.0))
    assert steps == {"rollout": 9, "logprobs": 0, "train": 0}
    cached = sum(PROMPT + made for n in LENGTHS for made in range(1, n + 1))
    assert predicted(replace(INSTANT, cached_token=1.0))["rollout"] == pytest.approx(cached)


def test_traffic_grows_with_the_compute_type_and_training_with_what_is_trained_on():
    rates = replace(INSTANT, traffic=1.0)
    wide, narrow = predicted(rates), predicted(rates, "--dtype=bfloat16")
    assert all(wide[phase] == pytest.approx(2 * narrow[phase]) and narrow[phase] > 0 for phase in wide)
    fewer = predicted(replace(INSTANT, backward=1.0, decode_step=1.0), trained=2)
    whole = predicted(replace(INSTANT, backward=1.0, decode_step=1.0))
    assert fewer["train"] / whole["train"] == pytest.approx((8 + 13) / (8 + 13 + 6 + 11))
    assert fewer["rollout"] == whole["rollout"]


def test_the_report_stands_measured_beside_predicted(world, tmp_path):
    cfg = load_config(flags(world, tmp_path))
    row = dict(groups_trained=cfg.prompts_per_step, response_len_mean=8.0, prompt_tokens_cached=8 * 3 * 11)
    row |= dict(time_rollout=2.0, time_logprobs=0.5, time_train=4.0)
    # nothing to train on: not counted
    table, note = predict.compared(cfg, [row, row | dict(groups_trained=0, time_train=0.0)])
    measured = {line["phase"]: line["measured s"] for line in table}
    assert measured == {"rollout": 2, "logprobs": 0.5, "train": 4}
    assert all(line["ratio"] == line["predicted s"] / line["measured s"] > 0 for line in table)
    assert "predicted: a model, from 32 responses of 8 tokens to prompts of 11" in note and "GFLOP/s" in note
    with pytest.raises(UserError, match="predict: no step had anything to train on"):
        predict.compared(cfg, [row | dict(groups_trained=0)])


@pytest.mark.parametrize(
    "refused, message", [("configs/8k.py", "one process on a CPU"), ("--sampler=vllm", "embedded")]
)
def test_what_cannot_be_predicted_is_refused_before_anything_runs(refused, message):
    with pytest.raises(UserError, match=f"predict: .*{message}"):
        bench.main(["--sections=predict", *([] if refused.endswith(".py") else ["configs/tiny.py"]), refused])
