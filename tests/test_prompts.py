"""Problem files, chat templates, and what is refused."""

import gc
import json
import os

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from configs import Config, UserError
from model import ModelConfig
from problems import templates
from problems.prompts import ChatTokenizer, Prompt, encode_problems, load_problems, unmatched_golds
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
    jsonl, notes = load_problems(write(tmp_path / "p.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, rows))))
    assert jsonl == load_problems(write(tmp_path / "p.json", json.dumps(rows)))[0]
    assert notes == [f"{tmp_path}/p.jsonl: rows with several answers, any of which is right: 1"]
    assert [p.answer for p in jsonl] == ["1", "142", ["1", "2"]] and [p.id for p in jsonl] == ["0", "7", "2"]


def test_problems_come_from_the_files_that_the_curation_reads_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"problem": "a", "answer": "1"}, {"problem": "b,\nc", "answer": "2", "id": "x"}]
    columns = pyarrow.schema([(name, "string") for name in ("problem", "answer", "id")])
    parquet.write_table(pyarrow.Table.from_pylist(rows, columns), tmp_path / "p.parquet")
    expected = [Problem("0", "a", "1"), Problem("x", "b,\nc", "2")]
    assert load_problems(tmp_path / "p.parquet")[0] == expected
    csv = write(tmp_path / "p.csv", 'problem,answer\na,1\n"b,\nc",2\nd\n')
    with pytest.raises(UserError, match=r"p\.csv:5: not CSV: more or fewer fields"):
        load_problems(csv)
    write(csv, csv.read_text().removesuffix("d\n"))
    assert [p.problem for p in load_problems(csv)[0]] == ["a", "b,\nc"]
    with pytest.raises(UserError, match=r"not a \.jsonl"):
        load_problems(write(tmp_path / "p.txt", "{}"))


@pytest.mark.parametrize(
    "text,message",
    [
        (
            '{"problem": "a", "answer": "1"}\n{"problem": "b"}',
            r":2: no 'answer' among the columns problem \(--answer_f",
        ),
        ('{"problem": "a", "answer": "  "}', r"no rows that can be used, of 1: .*:1: no answer"),
        ('{"problem": "a", "answer": null}', r"no rows that can be used, of 1: .*:1: no answer"),
        ('{"problem": "a", "answer": [true]}', r":1: 'answer' is neither text nor number"),
        ('{"answer": "1", "text": "a"}', r":1: no 'problem' among the columns answer, text \(--problem_field="),
        ('{"problem": " ", "answer": "1"}', r":1: an empty problem"),
        ('{"problem": "a", "answer": "1"}\n{"problem', r":2: not JSON"),
        ("[1]", r":1: not an object"),
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
    ids, opened = tokenizer.prompts(["3+8=?"])[0]
    tokens = [tokenizer.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    assert tokens == ["<|bos|>", "<|user|>", *"3+8=?", "<|assistant|>", "<think>", "\n"]
    assert opened == "<|assistant|><think>\n"


def with_template(tiny_model_dir, tmp_path, template):
    config = json.loads((tiny_model_dir / "tokenizer_config.json").read_text())
    write(tmp_path / "tokenizer_config.json", json.dumps({**config, "chat_template": template}))
    for name in ("tokenizer.json", "config.json"):
        write(tmp_path / name, (tiny_model_dir / name).read_text())
    return ChatTokenizer(tmp_path)


def test_a_bos_is_added_where_the_template_writes_none(tiny_model_dir, tmp_path):
    ids, opened = with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}").prompts(["3+8=?"])[0]
    assert ids[0] == 0 and ids.count(0) == 1 and opened == ""


def byte_tokenizer(folder, special, bos, eos, template):
    """A model folder's tokenizer of bytes with the special tokens given; transformers' reading of it."""
    PreTrainedTokenizerFast = pytest.importorskip("transformers").PreTrainedTokenizerFast
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    if bos:
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": bos and {"__type": "AddedToken", "content": bos},
        "eos_token": eos,
        "chat_template": template,
    }
    write(folder / "tokenizer_config.json", json.dumps(config))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token=bos, eos_token=eos)


def chat_template(name):
    """(special tokens with bos and eos first, template, what it opens) in the manner of published models."""
    if name.startswith("r1"):
        bos, eos, user, assistant = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
        opens = "<think>\\n" if name == "r1, opening the think tag" else ""
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
        special = [bos, eos, user, assistant, "<think>", "</think>"]
        return special, template, assistant + opens.replace("\\n", "\n")
    if name == "qwen2.5":
        template = (
            "{%- if tools %}{{ '<|im_start|>system\\n' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}{%- else %}"
            "{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{%- else %}"
            "{{- '<|im_start|>system\\nPlease reason step by step.<|im_end|>\\n' }}{%- endif %}{%- endif %}"
            "{%- for message in messages %}"
            "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
        )
        special = [None, "<|im_end|>", "<|im_start|>"]
        return special, template, "<|im_end|>\n<|im_start|>assistant\n"
    if name == "qwen3":
        template = (
            "{%- set ns = namespace(last=messages|length - 1) %}{%- for message in messages[::-1] %}"
            "{%- if message.role == 'user' and message.content is string and not message.content.startswith('<x>') %}"
            "{%- set ns.last = messages|length - 1 - loop.index0 %}{%- break %}{%- endif %}{%- endfor %}"
            "{%- for message in messages %}{%- if message.role == 'tool' %}{%- continue %}{%- endif %}"
            "{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}{{- message.content }}{%- endgeneration %}"
            "{{- '<|im_end|>\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
            "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
            "{%- endif %}{%- endif %}"
        )
        special = [None, "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
        return special, template, "<|im_end|>\n<|im_start|>assistant\n"
    if name == "llama 3":
        template = (
            "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
            "{%- set date_string = strftime_now('%Y') %}{%- endif %}{%- endif %}"
            "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n' }}"
            "{%- if tools is not none %}{{ tools | tojson(indent=4) }}{%- endif %}"
            "{{- {'größe': '<b>'} | tojson(ensure_ascii=False) }}{{- '<|eot_id|>' }}"
            "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' +"
            " message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
        )
        special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
        return special, template, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    template = (
        "{%- set loop_messages = messages %}{{- bos_token }}{%- for message in loop_messages %}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('roles must alternate') }}{%- endif %}"
        "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + '[/INST]' }}"
        "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
    )
    return ["<s>", "</s>", "[INST]", "[/INST]"], template, "[/INST]"


NAMES = ["r1, as released", "r1, opening the think tag", "qwen2.5", "qwen3", "llama 3", "mistral"]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_published_templates_are_those_of_transformers(tmp_path, name):
    special, template, expected_opened = chat_template(name)
    bos, eos = special[:2]
    theirs = byte_tokenizer(tmp_path, [token for token in special if token], bos, eos, template)
    text = "Find $x$ if $2^x < 8$.\n" + Config(run_name="x").prompt_suffix
    options = dict(chat_template=template, add_generation_prompt=True, return_dict=False)
    expected = theirs.apply_chat_template([{"role": "user", "content": text}], **options)
    ids, opened = ChatTokenizer(tmp_path).prompts([text])[0]
    assert ids == expected and opened == expected_opened
    assert bos is None or ids.count(theirs.bos_token_id) == 1
    assert text.endswith(" Let's think step by step and output the final answer within \\boxed{}.")


def test_a_template_that_always_opens_the_think_tag_is_read_right(tiny_model_dir, tmp_path):
    """Also where no generation prompt is asked for, so that both renderings are equal."""
    template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|><think>{{ '\n' }}"
    (_, opened), *_ = with_template(tiny_model_dir, tmp_path, template).prompts(["3+8=?", "1+2=?"])
    assert opened == "<|assistant|><think>\n"
    named = [{"name": "tool_use", "template": "none"}, {"name": "default", "template": template}]
    assert with_template(tiny_model_dir, tmp_path, named).prompts(["3+8=?"])[0][1] == opened


def test_no_bos_is_added_where_the_folder_says_so(tiny_model_dir, tmp_path):
    with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    write(tmp_path / "tokenizer_config.json", json.dumps(config))
    assert 0 not in ChatTokenizer(tmp_path).prompts(["3+8=?"])[0][0]


def test_truncation_and_padding_of_a_stored_tokenizer_are_off(tiny_model_dir, tmp_path):
    tokenizer = with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}").tokenizer
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20, pad_id=1, pad_token="<|eos|>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(ChatTokenizer(tmp_path).prompts(["1+2+3=?"])[0][0]) == 8


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a constant of the compiler": "{{ 'a' * 10**10 }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "squaring": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "comparison": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "filler": "{{ lipsum(n=99999999) }}",
    "for one message": "{% if '7' in messages[0].content %}{{ 'a' | center(9999999999) }}{% endif %}"
    "{{ messages[0].content }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_without_end_is_stopped(tiny_model_dir, tmp_path, bomb, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 1)
    tokenizer = with_template(tiny_model_dir, tmp_path, BOMBS[bomb])
    with pytest.raises(UserError, match="the chat template or the tokenizer takes more than 1 s or 512 MiB"):
        tokenizer.prompts(["1+2=?", "7+2=?"])


def test_a_template_that_prints_a_lot_or_calls_itself_is_stopped(tiny_model_dir, tmp_path):
    for template, message in (
        ("{{ 'a' * 1000001 }}", "the chat template prints 1,000,001 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template fails: RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "the chat template fails: RecursionError"),
    ):
        with pytest.raises(UserError, match=message):
            with_template(tiny_model_dir, tmp_path, template).prompts(["3"])


def test_a_normalizer_that_multiplies_its_text_is_stopped(tiny_model_dir, tmp_path):
    tokenizer = with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}").tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("1", "1111") for _ in range(20)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="the chat template or the tokenizer takes more than"):
        ChatTokenizer(tmp_path).prompts(["1"])


@pytest.mark.parametrize("pattern", ["1", "12", Regex("12*"), Regex("")])
def test_a_decoder_that_multiplies_its_text_is_refused(tiny_model_dir, tmp_path, pattern):
    tokenizer = with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}").tokenizer
    bomb = [decoders.Replace(pattern, "12" * 16) for _ in range(5)]  # of one token, or of two
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *bomb])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="tokenizer.json: a token may decode to"):
        ChatTokenizer(tmp_path)


def test_a_long_token_is_refused_and_a_common_decoder_is_not(tiny_model_dir, tmp_path):
    tokenizer = with_template(tiny_model_dir, tmp_path, "{{ messages[0]['content'] }}").tokenizer
    common = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(common)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ChatTokenizer(tmp_path).size == tokenizer.get_vocab_size()
    tokenizer.add_tokens(["x" * 100_000])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="a token may decode to 100,000 characters"):
        ChatTokenizer(tmp_path)


def test_marks_of_generation_and_breaks_of_loops_are_run_as_transformers_does(tiny_model_dir, tmp_path):
    template = "{% for m in messages * 3 %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m['content'] }}{% endfor %}"
    template += "{% generation %}<|assistant|>{% endgeneration %}{{ {'a': '\u00e9'} | tojson(ensure_ascii=true) }}"
    template += "{{ strftime_now('%%') }}"
    ids, opened = with_template(tiny_model_dir, tmp_path, template).prompts(["3+8=?"])[0]
    assert opened == '<|assistant|>{"a": "\\u00e9"}%'


def test_a_template_that_does_not_show_the_problem_is_refused(tiny_model_dir, tmp_path):
    tokenizer = with_template(tiny_model_dir, tmp_path, "{{ bos_token }}<|user|>1+1=?<|assistant|>")
    with pytest.raises(UserError, match=r"does not show the problem's text: '3\+8=\?'"):
        tokenizer.prompts(["3+8=?"])


def changed_folder(tiny_model_dir, folder, file, **changes):
    """A copy of the tokenizer's folder in which a JSON file has other values."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        write(folder / name, (tiny_model_dir / name).read_text())
    path = folder / file
    write(path, json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    return folder


def test_stop_tokens_of_all_files_are_united(tiny_model_dir, tmp_path):
    changed_folder(tiny_model_dir, tmp_path, "generation_config.json", eos_token_id=[5, 3])
    changed_folder(tiny_model_dir, tmp_path, "config.json", eos_token_id=4)
    assert ChatTokenizer(tmp_path).eos_ids == [5, 3, 4, 1]


def test_stop_tokens_of_the_settings_are_texts_or_ids(tiny_model_dir):
    tokenizer = ChatTokenizer(tiny_model_dir, ("<|user|>", "7", "\\", "1", "<|eos|>"))
    assert tokenizer.eos_ids == [1, 2, 7, tokenizer.tokenizer.token_to_id("\\")]  # digits are an id, never a text
    assert tokenizer.decode([8, 9, 7]) == tokenizer.decode([8, 9]) != ChatTokenizer(tiny_model_dir).decode([8, 9, 7])


@pytest.mark.parametrize("token", ["<|im_end|>", "51", "9" * 30, "ab", "²", "-1", " "])
def test_a_stop_token_of_the_settings_that_is_none_is_refused(tiny_model_dir, token):
    with pytest.raises(UserError, match=r"stop_tokens: .* is no token of .*tokenizer\.json, nor the id of one") as e:
        ChatTokenizer(tiny_model_dir, ("<|user|>", token))
    assert "\n" not in str(e.value)


ENDS = dict(zip(NAMES, ["<｜end▁of▁sentence｜>"] * 2 + ["<|im_end|>"] * 2 + ["<|eot_id|>", "</s>"], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_published_templates_end_a_turn_with_is_known(tmp_path, name):
    special, template, _ = chat_template(name)
    bos, eos = special[:2]
    byte_tokenizer(tmp_path, ["<other>", *(token for token in special if token)], bos, eos, template)
    tokenizer = ChatTokenizer(tmp_path)
    assert tokenizer.end_of_turn() == ENDS[name] == eos and tokenizer.stop_warning() == ""
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if template.count("eos_token") == 0:  # as a base model's folder has it, which ends a text with another token
        write(tmp_path / "tokenizer_config.json", json.dumps(config | {"eos_token": "<other>"}))
        warning = ChatTokenizer(tmp_path).stop_warning()
        assert f"ends a turn with '{eos}', which is not among the stop tokens ('<other>')" in warning
        assert f"--stop_tokens='{eos}'" in warning and "\n" not in warning
        assert ChatTokenizer(tmp_path, (eos,)).stop_warning() == ""


def test_an_added_token_of_line_ends_ends_no_turn(tiny_model_dir, tmp_path):
    template = "{% for m in messages %}{{ m['content'] + '\n\n' }}<|user|>{% endfor %}"
    tokenizer = with_template(tiny_model_dir, tmp_path, template).tokenizer
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    changed_folder(tiny_model_dir, tmp_path, "config.json", vocab_size=tokenizer.get_vocab_size())
    with_config = json.loads((tiny_model_dir / "tokenizer_config.json").read_text()) | {"chat_template": template}
    write(tmp_path / "tokenizer_config.json", json.dumps(with_config))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ChatTokenizer(tmp_path).end_of_turn() == "<|user|>"


@pytest.mark.parametrize("turn", [
    "{{ raise_exception('no assistant here') }}", "", "{{ m['content'] }}", "{{ m['content'] }}\n\nUser: ",
    "{{ m['content'][:3] }}<|user|>", "{{ m['reasoning'].strip('x') }}", "{% for a in range(10**9) %}{% endfor %}",
])  # fmt: skip
def test_a_template_without_an_assistants_turn_gives_no_warning(tiny_model_dir, tmp_path, monkeypatch, turn):
    monkeypatch.setattr(templates, "SECONDS", 1)
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}" + turn
    tokenizer = with_template(tiny_model_dir, tmp_path, template + "{% endif %}{% endfor %}")
    assert tokenizer.end_of_turn() is None and tokenizer.stop_warning() == "" and tokenizer.prompts(["3+8=?"])


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("eos", [[], 999, -1, "<|eos|>", True, [1, None], 1.0, {}, 10**30], ids=str)
def test_a_stop_token_that_is_none_is_refused(tiny_model_dir, tmp_path, file, eos):
    changed_folder(tiny_model_dir, tmp_path, file, eos_token_id=eos)
    with pytest.raises(UserError, match=rf"/{file}: eos_token_id .* is no id of a token in tokenizer\.json"):
        ChatTokenizer(tmp_path)


def test_ids_may_have_gaps_but_not_lie_beyond_the_embeddings(tiny_model_dir, tmp_path):
    raw = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    raw["model"]["vocab"]["X"] = 60
    changed_folder(tiny_model_dir, tmp_path, "tokenizer.json", model=raw["model"])
    with pytest.raises(UserError, match=r"tokenizer\.json: 'X' has id 60, but config\.json has vocab_size=51"):
        ChatTokenizer(tmp_path)
    changed_folder(tiny_model_dir, tmp_path, "config.json", vocab_size=61)
    write(tmp_path / "tokenizer.json", json.dumps(raw))
    assert ChatTokenizer(tmp_path).size == 61
    write(tmp_path / "generation_config.json", '{"eos_token_id": 55}')  # an id of the gap
    with pytest.raises(UserError, match="eos_token_id 55 is no id of a token"):
        ChatTokenizer(tmp_path)


def test_special_tokens_that_are_no_text_are_refused(tiny_model_dir, tmp_path):
    for token in (5, [1], {"content": None}, True):
        changed_folder(tiny_model_dir, tmp_path, "tokenizer_config.json", bos_token=token)
        with pytest.raises(UserError, match=r"tokenizer_config\.json: bos_token is not text"):
            ChatTokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
def test_pipes_and_deep_json_are_refused_in_one_line(tiny_model_dir, tmp_path, file):
    changed_folder(tiny_model_dir, tmp_path, "config.json")
    for spoil in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: write(path, "[" * 99999)):
        (tmp_path / file).unlink(missing_ok=True)
        spoil(tmp_path / file)
        with pytest.raises(UserError, match=f"(?s)^(?!.*\n).*{file}"):
            ChatTokenizer(tmp_path)
    if file == "config.json":
        with pytest.raises(UserError, match="not JSON"):
            ModelConfig.from_folder(tmp_path)


def test_golds_that_no_answer_matches_are_counted():
    golds = ["5", "####", "NaN", ["Infinity", "-inf"], ["####", "7"], "\\infty", "\\frac{1}{2}", "null"]
    prompts = [Prompt(Problem(str(i), "x", gold), [1], "") for i, gold in enumerate(golds)]
    line = unmatched_golds({"train.jsonl": prompts, "test": prompts[:1]})
    assert line.startswith(
        "answers that the exact rule cannot read: 4 of 8 in train.jsonl, 0 of 1 in test: '####' of problem 1"
    )
    assert "'NaN' of problem 2" in line and "'Infinity' of problem 3" in line and "null" not in line
    assert unmatched_golds({"x": prompts[:1]}) == "answers that the exact rule cannot read: 0 of 1 in x"


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
        tokenizer.prompts(["3"])[0]


def test_folders_without_tokenizer_or_template_are_refused(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        ChatTokenizer(tmp_path)
    write(tmp_path / "tokenizer.json", (tiny_model_dir / "tokenizer.json").read_text())
    write(tmp_path / "tokenizer_config.json", "{}")
    with pytest.raises(UserError, match="chat template"):
        ChatTokenizer(tmp_path)


def test_the_suffix_stands_behind_each_problem(tiny_model_dir, tmp_path):
    problems, _ = load_problems(write(tmp_path / "p.jsonl", '{"problem": "1+2", "answer": "3"}'))
    tokenizer = ChatTokenizer(tiny_model_dir)
    assert encode_problems(problems, tokenizer, "=?")[0].ids == tokenizer.prompts(["1+2=?"])[0][0]


def test_the_child_that_renders_destroys_nothing_of_its_parent():
    """A process group of gloo that the child collected waited for the parent's threads, without end."""
    parent = os.getpid()

    class Group:
        def __del__(self) -> None:
            if os.getpid() != parent:
                os._exit(1)

    def make():
        gc.set_threshold(1)
        return lambda text: [[] for _ in range(1000)] and text

    before = gc.get_threshold()
    gc.set_threshold(10**6)
    try:
        group = Group()
        group.itself = group
        del group
        assert templates.map_in_child(make, ["a", "b"]) == ["a", "b"]
    finally:
        gc.set_threshold(*before)
