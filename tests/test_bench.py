"""bench.py's sections, their errors against float64, and the comparison with TRL without TRL."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench
from configs import UserError
from model import ModelConfig, Qwen2
from speed import against, growth, kernels, machine, measure, our_side
from speed.passes import BareDecoder, random_ids

CPU = torch.device("cpu")


def test_sections_print_one_json_object(tiny_model_dir, capsys, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(growth, "LENGTHS", (8, 16))
    monkeypatch.setattr(growth, "GROUPS", (2,))
    sections = ["gemm", "attention", "head", "train", "generate", "growth"]
    argv = ["configs/tiny.py", f"--model={tiny_model_dir}", f"--sections={','.join(sections)}", "--json"]
    bench.main([*argv, "--token_budget=200", "--logprob_chunk=64", "--prompts_per_step=2", "--max_response_len=8,8,8"])
    report = json.loads(capsys.readouterr().out)
    assert list(report["sections"]) == sections and report["machine"]["torch"] == torch.__version__
    rows = {name: section["rows"] for name, section in report["sections"].items()}
    assert {name: len(found) for name, found in rows.items()} == dict(zip(sections, [15, 2, 2, 2, 1, 3], strict=True))
    for name, row in ((name, row) for name, found in rows.items() for row in found):
        assert row.get("error", 0.0) < (1e-4 if name == "generate" else 1e-5), (name, row)
        for spread in (value for value in row.values() if isinstance(value, dict)):
            assert 0 < spread["low"] <= spread["median"] <= spread["high"] and spread["repeats"] == 3
    assert rows["gemm"][0]["product"] == "qkv, forward" and rows["gemm"][0]["size"] == "200 x 96 x 160"
    assert rows["generate"][0]["batch"] == "2 prompts x 8 samples of 8 tokens"
    lengths = ["1 x 8 of 8 tokens", "1 x 8 of 16 tokens", "4 x 2 of 8 tokens"]
    assert [row["responses"] for row in rows["growth"]] == lengths
    # 8 x 47 tokens; of attention a layer 2 products, of half the square, of 3 heads of 32
    attention, products = 3 * 2 * 96 * 47**2, 47 * 2 * (3 * 96 * (2 * 96 + 2 * 32 + 3 * 256) + 96 * 51)
    assert rows["growth"][0]["attention's FLOPs"] == f"{attention / (attention + products):.1%}"


def test_the_error_tells_a_wrong_product_and_wrong_attention(monkeypatch, tiny_model_dir):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    a, b = (kernels.random_tensor(80, 80, device=CPU, dtype=torch.float32) for _ in range(2))
    assert kernels.product_figures(torch.matmul, a, b, CPU)["error"] < 1e-5
    assert kernels.product_figures(lambda a, b: (a.bfloat16() @ b.bfloat16()).float(), a, b, CPU)["error"] > 1e-3
    shape = Qwen2.from_pretrained(tiny_model_dir).config
    assert max(kernels.attention_error(shape, torch.float32, "sdpa", CPU)) < 1e-5
    monkeypatch.setattr(kernels, "attention", lambda q, k, v, *_: 0 * q + k.mean() + v.mean())
    assert min(kernels.attention_error(shape, torch.float32, "sdpa", CPU)) > 1e-2


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_the_bare_decoder_computes_the_model(kind, qwen3_dir, tmp_path):
    against.write_model(tmp_path, against.SMALL)  # two heads of keys and values for four of queries
    path = qwen3_dir if kind == "qwen3" else tmp_path
    model, bare, prompts = Qwen2.from_pretrained(path), BareDecoder(path, torch.float32, CPU), random_ids(50, 2, 5)
    ids, c = torch.tensor(prompts), model.config
    with torch.no_grad():
        hidden = model(ids.flatten(), torch.arange(5).repeat(2), torch.tensor([0, 5, 10], dtype=torch.int32))
        expected = (hidden @ model.lm_head.weight.T).view(2, 5, -1)
        cache = torch.zeros(c.num_hidden_layers, 2, 2, c.num_key_value_heads, 5, c.head_dim)
        assert measure.relative_error(bare.logits(ids[:, :3], cache, 0), expected[:, 2]) < 1e-5
        for i in (3, 4):
            assert measure.relative_error(bare.logits(ids[:, i : i + 1], cache, i), expected[:, i]) < 1e-5
    assert bare.generate(prompts, 3, 4, 1.0).shape == (6, 4)


def test_growth_raises_the_limit_of_positions_and_nothing_else(tiny_model_dir):
    with growth.longer_folder(tiny_model_dir, 5000) as folder:
        before, after = Qwen2.from_pretrained(tiny_model_dir), Qwen2.from_pretrained(folder)
    assert after.config == replace(before.config, max_position_embeddings=5000)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    with growth.longer_folder(tiny_model_dir, 5) as folder:
        assert ModelConfig.from_folder(folder) == before.config


def test_the_share_of_others_is_what_neither_we_nor_idling_took():
    #              user nice system idle iowait irq softirq steal guest guest_nice
    before = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 1000 10 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n"
    after = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 400 20 80 1500 60 5 5 90 7 7\ncpu1 9 9 9 9 9 9 9 9 9 9\nintr 5\n"
    assert machine.cpu_seconds(before, {0}, ticks=100) == (1.5, 11.6)
    assert machine.cpu_seconds(after, {0}, ticks=100) == (6.0, 21.6)
    columns = "0 0 0 0 0 0 0 0 0"
    stats = [
        f"7 (python) S 1 {columns} 100 50 10 5 20 0",
        f"8 (a) b) (c) R 7 {columns} 30 0 0 0 20 0",  # a child whose name holds parentheses
        f"9 (grandchild) S 8 {columns} 5 0 0 0 20 0",
        f"10 (stranger) R 1 {columns} 999 0 0 0 20 0",
    ]
    assert machine.tree_seconds(stats, 7, ticks=100) == 2.0
    first, last = machine.Reading(10.0, 1.5, 11.6, 2.0), machine.Reading(20.0, 6.0, 21.6, 5.5)
    stretch = machine.stretch(first, last)
    assert (stretch.seconds, stretch.others) == (10.0, pytest.approx(0.1))


def test_only_quiet_rounds_count():
    def round_of(our_seconds, others):
        ours = {"side": "ours", "seconds": our_seconds, "tokens": 100, "others": others}
        theirs = {"side": "trl", "seconds": 8.0, "tokens": 100, "others": 0.0}
        return against.round_figures([ours, theirs, theirs, ours])

    rounds = [round_of(4.0, 0.01), round_of(2.0, 0.02), round_of(64.0, 0.06)]
    assert [r["ratio"] for r in rounds] == [2.0, 4.0, 0.125]
    assert against.summary(rounds) == {"ours": 0.03, "trl": 0.08, "ratio": 3.0, "quiet_rounds": 2}
    assert against.summary(rounds[2:])["ratio"] is None


def test_our_side_trains_on_the_job(tmp_path):
    job = replace(against.JOBS["full"], steps=2, prompts_per_step=2, group_size=2, max_response_len=8)
    written = against.write_job(job, tmp_path, [], threads=1)
    (tmp_path / "job.json").write_text(json.dumps(written))
    our_side.main([str(tmp_path / "job.json")])
    figures = json.loads(Path(written["result"]).read_text())
    assert figures["tokens"] == 2 * 2 * 2 * 8  # no response has stopped
    assert figures["step"] == pytest.approx(figures["seconds"] / 2)
    assert figures["generate"] + figures["train"] + figures["rest"] == pytest.approx(figures["step"])
    assert min(figures[part] for part in ("generate", "train", "rest")) > 0 <= figures["others"] <= 1


@pytest.mark.parametrize("flag", ["--mask_truncated=true", "--threads=1", "--lr=1e-3"])
def test_what_would_change_the_job_on_one_side_is_refused(tmp_path, flag):
    assert "--compile=head" in against.our_flags(against.JOBS["full"], tmp_path, ["--compile=head"])
    with pytest.raises(UserError, match=f"{flag}: --against=trl takes only dtype, .*compile"):
        against.our_flags(against.JOBS["full"], tmp_path, [flag])


def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no .venv-trl is
    refused = {
        "--against=trl": "no Python with TRL; to make one: python3 -m venv",
        "--against=verl": "not known, only trl",
        "--sections=gemm,attn": "'attn' is not among gemm, ",
        "--against=trl --rounds=0": "under its minimum 1",
        "--rounds=2": "only --against=trl has it",
        "--sections=gemm --against=trl": "--against=trl has none",
        "--sections=gemm --model=nowhere": "no config.json in nowhere",
        "--sections=generate --sampler=vllm --device=cpu": "compares the torch sampler",
    }
    for flags, message in refused.items():
        with pytest.raises(UserError, match=message):
            bench.main(["configs/tiny.py", *flags.split()])
    for flag, message in (("--group_size=4", "group_size=4: --against=trl takes only"), ("--no_such=1", "takes only")):
        with pytest.raises(UserError, match=message):
            against.our_flags(against.JOBS["full"], tmp_path, [flag])
