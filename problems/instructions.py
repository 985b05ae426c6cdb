"""The problem in a published prompt: without its chat, its chat template, its worked examples and its instruction.

A prompt of another project tells the model how to answer, and `prompt_suffix` would say it a second time, or otherwise.
What is known to be an instruction is taken off, and said; what is not stays.
"""

import re
from typing import Any

BOX = r"\$?\\boxed\s*\{[^{}]{0,40}\}\$?"
WISH = (  # "Please reason step by step, and put your final answer within \boxed{}."
    r"(?:please,?\s+)?(?:(?:let's\s+)?(?:think|reason)\s+step[ -]by[ -]step,?\s+and\s+)?"
    r"(?:make\s+sure\s+to\s+|remember\s+to\s+|you\s+(?:should|must)\s+)?"
    r"(?:put|write|present|give|provide|enclose|output|return|place|box|state)\s+(?:your|the)\s+"
    r"(?:final\s+|correct\s+)?(?:answer|response|result|solution)(?:\s+\(and\s+only\s+answer\))?\s+"
    rf"(?:(?:in|within|inside|using|with)\s+(?:a\s+|latex\s+format:?\s*|the\s+format:?\s*)?{BOX}"
    r'|after\s+"?####"?|on\s+its\s+own\s+line\s+after\s+"Answer:")(?:\s+(?:tags?|format|notation))?\s*[.!]?'
)
INSTRUCTIONS = (
    WISH,  # verl, PRIME, DAPO's end, Qwen2.5-Math, SYNTHETIC-1
    r"(?:please,?\s+)?(?:let's\s+)?(?:think|reason)\s+step[ -]by[ -]step\s*[.:!]?",  # SimpleRL
    rf"solve\s+the\s+following\s+(?:math\s+)?problem(?:\s+step\s+by\s+step)?[.:](?:\s+{WISH})?",  # NeMo
    r"solve\s+the\s+following\s+math\s+problem\s+step\s+by\s+step\.\s+The\s+last\s+line\s+of\s+your\s+response\s+should"
    r"\s+be\s+of\s+the\s+form\s+Answer:\s+\S{1,20}\s+\(without\s+quotes\)\s+where\s+\S{1,20}\s+is\s+the\s+answer\s+to"
    r"\s+the\s+problem\.",  # DAPO
    r"solve\s+the\s+following\s+math\s+problem\s+efficiently\s+and\s+clearly[.:](?:(?!think\s+step)[\s\S]){0,900}"
    r"think\s+step\s+by\s+step\s+before\s+answering\.",  # lighteval
    r"solve\s+the\s+following\s+math\s+problem\s+efficiently\s+and\s+clearly[.:](?:(?!where\s+\[answer\])[\s\S]){0,900}"
    r"where\s+\[answer\]\s+is\s+just\s+the\s+final\s+number\s+or\s+expression\s+that\s+solves\s+the\s+"
    r"problem\.",  # Llama
    r"show\s+your\s+work\s+in\s+<think>\s*</think>\s+tags\.\s+(?:and\s+)?return\s+the\s+final\s+answer\s+in\s+"
    r"<answer>\s*</answer>\s+tags(?:,\s+for\s+example\s+<answer>[^<\n]{0,80}</answer>)?\.?",  # TinyZero
    r"you\s+first\s+think\s+about\s+the\s+reasoning\s+process\s+as\s+an\s+internal\s+monologue\s[^\n]{0,300}?"
    rf"must\s+be\s+put\s+in\s+{BOX}\.?",  # EasyR1
    r"you\s+must\s+put\s+your\s+answer\s+inside\s+<answer>\s*</answer>\s+tags[^\n]{0,300}\n+this\s+is\s+the\s+"
    r"problem:",  # Open-Reasoner-Zero
    r"请(?:你)?(?:一步一步|逐步)地?(?:推理|思考)，?并?(?:将|把)?(?:你的)?最终答案"
    rf"(?:放在|写在|置于|放入)\s*{BOX}\s*(?:中|内|里)?。?",  # Qwen
)
# Longer ones first, so that none takes the beginning of another.
AT_START = [
    re.compile(rf"(?:{text})(?:(?<=[.!:。])(?=\s)|(?=\s*\n))", re.IGNORECASE) for text in reversed(INSTRUCTIONS)
]
AT_END = [re.compile(rf"(?:{text})\s*\Z", re.IGNORECASE) for text in INSTRUCTIONS]
SENTENCE_ENDS = ".?!:)$]}。？"
RENDERED = [  # the user's turns in a prompt that was rendered for one model
    re.compile(r"<\|im_start\|>user\s*(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL),
    re.compile(r"<[|｜]User[|｜]>(.*?)(?:<[|｜]Assistant[|｜]>|\Z)", re.DOTALL),
    re.compile(r"<\|start_header_id\|>user<\|end_header_id\|>\s*(.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL),
]
LABEL = re.compile(r"^(?:Question|Problem|Q|Frage|Pregunta|Вопрос|问题|問題)\s*[:：][ \t]*", re.MULTILINE)
REPLY_LABEL = re.compile(r"^[ \t]*(?:Answer|Solution|A)[ \t]*[:：]", re.MULTILINE)
SPEAKS_OF_FORMAT = re.compile(r"\\boxed|####|Answer:|<answer>|<think>|step[ -]by[ -]step", re.IGNORECASE)
ROLES = {"human": "user", "gpt": "assistant"}


def chat_turns(chat: list[Any]) -> list[tuple[str, str]]:
    """(role, text) of each turn of [{role, content}] or [{from, value}]. Raises ValueError."""
    turns = []
    for turn in chat:
        if not isinstance(turn, dict):
            raise ValueError("a list that is no chat of {role, content}")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list):  # parts of a turn, as some APIs have them
            if not all(isinstance(part, dict) and part.get("type", "text") == "text" for part in content):
                raise ValueError("a chat with images or other parts that are no text")
            content = "".join(str(part.get("text", "")) for part in content)
        turns.append((ROLES.get(role, str(role)), content if isinstance(content, str) else ""))
    return turns


def of_chat(chat: list[Any]) -> tuple[str, str, list[str]]:
    """(the last user turn, the assistant's reply to it or "", what else there was). Raises ValueError."""
    turns, left_out = chat_turns(chat), []
    places = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if not places:
        raise ValueError("a chat without a user's turn")
    if any(role == "system" and text.strip() for role, text in turns):
        left_out.append("a system prompt")
    if len(places) > 1:
        left_out.append("earlier turns of a chat")
    replies = [text for role, text in turns[places[-1] :] if role == "assistant"]
    return turns[places[-1]][1], replies[0] if replies else "", left_out


def bare_problem(prompt: str) -> tuple[str, list[str]]:
    """(the problem alone, what was taken off it)."""
    text, taken = without_template(prompt)
    labelled = bool(LABEL.match(text))
    while True:
        text, examples = behind_label(text)
        text = without_last_label(text) if labelled else text
        taken += ["worked examples"] if examples else []
        instruction = find_instruction(text)
        if instruction is None:
            return text, taken
        words = " ".join(instruction[0].split())
        taken.append(f"'{words if len(words) < 80 else words[:77] + '...'}'")
        text = (text[: instruction.start()] + text[instruction.end() :]).strip()


def without_template(prompt: str) -> tuple[str, list[str]]:
    """(the user's last turn in a prompt that was rendered for one model, what was taken off); else the prompt."""
    text = prompt.strip()
    for pattern in RENDERED:
        shown = pattern.findall(text)
        if shown:
            return shown[-1].strip(), ["a chat template"]
    for start, question, reply in (
        ("Below is an instruction that", "### Instruction:", "### Response:"),  # Alpaca
        ("A conversation between User and Assistant.", "User:", "Assistant:"),  # R1-Zero
    ):
        if text.startswith(start) and question in text:
            return text.partition(question)[2].partition(reply)[0].strip(), ["a chat template"]
    return text, []


def behind_label(text: str) -> tuple[str, bool]:
    """(what stands behind `Question:`, whether solved examples stood before it)."""
    if not LABEL.match(text):
        return text, False
    *earlier, last = LABEL.split(text)[1:]
    examples = bool(earlier) and all(REPLY_LABEL.search(part) for part in earlier)
    return (last if examples else text[LABEL.match(text).end() :]).strip(), examples


def without_last_label(text: str) -> str:
    """Without an `Answer:` that ends the text."""
    before, _, last_line = text.strip().rpartition("\n")
    return before.strip() if REPLY_LABEL.fullmatch(last_line.rstrip()) else text.strip()


def find_instruction(text: str) -> re.Match | None:
    """A known instruction at the start or at the end of a text that is more than it."""
    for pattern in AT_START:
        match = pattern.match(text)
        if match:
            return match
    for pattern in AT_END:
        match = pattern.search(text)
        if match and match.start() and ends_sentence(text[: match.start()]):
            return match
    return None


def ends_sentence(text: str) -> bool:
    """Does a sentence or a line end here?"""
    bare = text.rstrip()
    return not bare or bare[-1] in SENTENCE_ENDS or "\n" in text[len(bare) :]
