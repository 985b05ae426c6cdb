"""Problem files, chat templates, and what is refused."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from configs import Config, UserError
from problems.prompts import ChatTokenizer, encode_problems, load_problems
from reward import Problem


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_every_format_with_every_kind_of_answer(tmp_path):
    rows = [
        {"problem": "a", "answer": "1"},
        {"id": 7, "problem": "b", "answer": 142.0},
        {"problem": "c", "answer": ["1", "2"]},
    ]
    jsonl = load_problems(write(tmp_path / "p.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, rows))))
    assert jsonl == load_problems(write(tmp_path / "p.json", json.dumps(rows)))
    assert [p.answer for p in jsonl] == ["1", "142.0", ["1", "2"]] and jsonl[1].id == "7"


def test_problems_come_from_the_files_that_the_curation_reads_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"problem": "a", "answer": "1"}, {"problem": "b,\nc", "answer": "2", "id": "x"}]
    columns = pyarrow.schema([(name, "string") for name in ("problem", "answer", "id")])
    parquet.write_table(pyarrow.Table.from_pylist(rows, columns), tmp_path / "p.parquet")
    expected = [Problem("0", "a", "1"), Problem("x", "b,\nc", "2")]
    assert load_problems(tmp_path / "p.parquet") == expected
    csv = write(tmp_path / "p.csv", 'problem,answer\na,1\n"b,\nc",2\nd\n')
    with pytest.raises(UserError, match=r"p\.csv:5: not CSV: more or fewer fields"):
        load_problems(csv)
    write(csv, csv.read_text().removesuffix("d\n"))
    assert [p.problem for p in load_problems(csv)] == ["a", "b,\nc"]
    with pytest.raises(UserError, match=r"not a \.jsonl"):
        load_problems(write(tmp_path / "p.txt", "{}"))


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"problem": "a", "answer": "1"}\n{"problem": "b"}', r":2: a row needs an 'answer'"),
        ('{"problem": "a", "answer": "  "}', r":1: a row needs an 'answer'"),
        ('{"problem": "a", "answer": null}', r":1: a row needs an 'answer'"),
        ('{"problem": "a", "answer": ["1", null]}', r":1: a row needs an 'answer'"),
        ('{"answer": "1"}', r":1: a row needs a text 'problem'"),
        ('{"problem": "a", "answer": "1"}\n{"problem', r":2: not JSON"),
        ("[1]", r":1: a row needs a text 'problem'"),
        ("\n", "no rows"),
    ],
)
def test_a_bad_row_is_named_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as e:
        load_problems(write(tmp_path / "p.jsonl", text))
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read"):
        load_problems(tmp_path / "none.jsonl")


def test_the_prompt_is_the_template_with_one_bos_and_the_opened_think_tag(tiny_model_dir):
    tokenizer = ChatTokenizer(tiny_model_dir)
    ids, opened = tokenizer.prompt("3+8=?")
    tokens = [tokenizer.tokenizer.id_to_token(i) for i in ids]
    assert tokens == ["<|bos|>", "<|user|>", *"3+8=?", "<|assistant|>", "<think>", "\n"]
    assert opened == "<|assistant|><think>\n"


def with_template(tiny_model_dir, tmp_path, template):
    config = json.loads((tiny_model_dir / "tokenizer_config.json").read_text())
    write(tmp_path / "tokenizer_config.json", json.dumps({**config, "chat_template": template}))
    for name in ("tokenizer.json", "config.json"):
        write(tmp_path / name, (tiny_model_dir / name).read_text())
    return ChatTokenizer(tmp_path)


def test_a_bos_is_added_where_the_template_writes_none(tiny_model_dir, tmp_path):
    ids, opened = with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}").prompt("3+8=?")
    assert ids[0] == 0 and ids.count(0) == 1 and opened == ""


@pytest.mark.parametrize("opens", ["", "<think>\\n"], ids=["as released", "opening the think tag"])
def test_prompts_of_deepseeks_template_are_those_of_transformers(tmp_path, opens):
    """R1's template in structure and tokens, in both its forms, on a tokenizer of bytes with R1's special tokens."""
    PreTrainedTokenizerFast = pytest.importorskip("transformers").PreTrainedTokenizerFast
    bos, eos, user, assistant = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
    special = [bos, eos, user, assistant, "<think>", "</think>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    bos_id = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bos_id)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(system='', first=true) %}"
        "{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.system = m['content'] %}"
        "{%- endif %}{%- endfor %}"
        "{{ bos_token }}{{ ns.system }}"
        "{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '" + user + "' + m['content'] }}{%- endif %}"
        "{%- if m['role'] == 'assistant' %}{% set text = m['content'].split('</think>')[-1] %}"
        "{{ '" + assistant + "' + text + eos_token }}{%- endif %}{%- endfor -%}"
        "{% if add_generation_prompt %}{{ '" + assistant + opens + "' }}{% endif %}"
    )
    config = {"bos_token": {"__type": "AddedToken", "content": bos}, "eos_token": eos, "chat_template": template}
    write(tmp_path / "tokenizer_config.json", json.dumps(config))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token=bos, eos_token=eos)
    text = "Find $x$ if $2^x = 8$." + Config(run_name="x").prompt_suffix
    options = dict(chat_template=template, add_generation_prompt=True, return_dict=False)
    expected = theirs.apply_chat_template([{"role": "user", "content": text}], **options)
    ids, opened = ChatTokenizer(tmp_path).prompt(text)
    assert ids == expected and ids.count(bos_id) == 1
    assert opened == assistant + opens.replace("\\n", "\n")
    assert text.endswith(" Let's think step by step and output the final answer within \\boxed{}.")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% for m in messages %}{{ m.clear() }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_hostile_templates_are_stopped_by_the_sandbox(tiny_model_dir, tmp_path, template):
    tokenizer = with_template(tiny_model_dir, tmp_path, template)
    with pytest.raises(UserError, match="the chat template fails"):
        tokenizer.prompt("3")


def test_folders_without_tokenizer_or_template_are_refused(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        ChatTokenizer(tmp_path)
    write(tmp_path / "tokenizer.json", (tiny_model_dir / "tokenizer.json").read_text())
    write(tmp_path / "tokenizer_config.json", "{}")
    with pytest.raises(UserError, match="chat template"):
        ChatTokenizer(tmp_path)


def test_the_suffix_stands_behind_each_problem(tiny_model_dir, tmp_path):
    problems = load_problems(write(tmp_path / "p.jsonl", '{"problem": "1+2", "answer": "3"}'))
    tokenizer = ChatTokenizer(tiny_model_dir)
    assert encode_problems(problems, tokenizer, "=?")[0].ids == tokenizer.prompt("1+2=?")[0]
