"""How alike two problems are: the numbers in their texts, and sentence embeddings for rephrased copies.

`Embedder` runs all-MiniLM-L6-v2 (Reimers and Gurevych, arXiv 1908.10084: mean over tokens, unit length) on windows of a
text and keeps every vector on disk under a hash of its window. `close_pairs` finds the pairs of vectors above a cosine
by blocked matrix products: no pair in Python that is not close, one tile in memory at a time.

Dimensions: N texts, W windows (one or more a text), E embedding size, B windows a forward pass, L tokens.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from configs import UserError
from configs._model import resolve_model
from grader.text import THOUSANDS_SEPARATOR

WINDOW, OVERLAP = 254, 64  # tokens; the model reads 256, two of which are its own
BATCH = 16  # windows a forward pass
TILE = 4096  # vectors a side of one matrix product

_FIGURE = re.compile(r"\[asy\].*?(\[/asy\]|$)", re.DOTALL | re.IGNORECASE)
_POWER_OF_TEN = re.compile(r"\b10\s*\^\s*(?:\{\s*)?(\d{1,2})(?!\d)(?:\s*\})?")
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)
_WORDS = dict(zip(_NAMES.split(), [*range(21), *range(30, 101, 10), 1000, 1_000_000], strict=True))


def without_figures(text: str) -> str:
    """The text without its Asymptote code; all of it where nothing else is there."""
    return _FIGURE.sub(" ", text).strip() or text


def numbers(text: str) -> tuple[str, ...]:
    """The numbers of a text, sorted: digits, powers of ten, and words (but one and two, which are often no numbers)."""
    text = THOUSANDS_SEPARATOR.sub("", text.lower())
    text = _POWER_OF_TEN.sub(lambda match: "1" + "0" * int(match[1]), text)
    text = re.sub(r"\bone (hundred|thousand|million)\b", r"\1", text)
    text = re.sub(r"\b([a-z]{3,5}ty)-([a-z]{3,5})\b", lambda m: str(_WORDS.get(m[1], 0) + _WORDS.get(m[2], 0)), text)
    words = [str(_WORDS[word]) for word in re.findall(r"[a-z]+", text) if _WORDS.get(word, 0) > 2]
    return tuple(sorted([*re.findall(r"\d+(?:\.\d+)?", text), *words]))


class Embedder:
    """Unit vectors of text windows, from disk where they are known.

    A forward pass always has BATCH rows of a multiple of 32 tokens, so a window's vector does not depend on what it is
    computed with, and an interrupted run ends with the same bits. Raises UserError where the model is missing.
    """

    def __init__(self, model: str, cache: Path) -> None:
        try:
            from transformers import AutoModel
        except ImportError:
            raise UserError("transformers is not installed: pip install -r requirements-data.txt") from None
        path = resolve_model(model)
        try:
            self.model = AutoModel.from_pretrained(str(path), dtype=torch.float32).eval()
            digest = hashlib.blake2b(digest_size=4)  # of the weights: another model's vectors stand in another file
            for name, weights in sorted(self.model.state_dict().items()):
                digest.update(name.encode() + weights.contiguous().numpy().tobytes())
            self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as e:  # transformers and tokenizers raise whatever their readers meet
            raise UserError(f"{path}: not an embedding model: {str(e).strip().splitlines()[0]}") from None
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.size = self.model.config.hidden_size
        self.record = np.dtype([("key", "V16"), ("vector", "<f4", (self.size,))])
        cache.mkdir(parents=True, exist_ok=True)
        self.file = cache / f"embeddings-{digest.hexdigest()}.bin"
        self.known: dict[bytes, np.ndarray] = {}
        if self.file.is_file():
            with open(self.file, "r+b") as f:
                f.truncate(self.file.stat().st_size // self.record.itemsize * self.record.itemsize)  # a torn record
            records = np.fromfile(self.file, self.record)
            self.known = {k.tobytes(): v for k, v in zip(records["key"], records["vector"], strict=True)}

    def encode(self, texts: list[str], progress: str) -> tuple[np.ndarray, np.ndarray]:
        """texts (N) -> vectors (W, E) float32 and the text each belongs to (W,), in order. `progress` names a bar."""
        owners: list[int] = []
        keys: list[bytes] = []
        new_windows: dict[bytes, np.ndarray] = {}
        for i, ids in enumerate(self._token_ids(texts)):
            for start in range(0, max(1, len(ids) - OVERLAP), WINDOW - OVERLAP):
                window = ids[start : start + WINDOW]
                key = hashlib.blake2b(window.tobytes(), digest_size=16).digest()
                owners.append(i)
                keys.append(key)
                if key not in self.known:
                    new_windows[key] = window
        self._embed(new_windows, progress)
        vectors = np.stack([self.known[k] for k in keys]) if keys else np.zeros((0, self.size), np.float32)
        return vectors, np.array(owners, np.int64)

    def _embed(self, windows: dict[bytes, np.ndarray], progress: str) -> None:
        """Vectors of new windows, shortest first, into the cache: after each forward pass they are on disk."""
        order = sorted(windows, key=lambda key: (padded_length(windows[key]), key))
        with open(self.file, "ab") as f, tqdm(total=len(order), desc=progress, disable=not order, mininterval=1) as bar:
            while order:
                length = padded_length(windows[order[0]])
                batch = [key for key in order[:BATCH] if padded_length(windows[key]) == length]
                vectors = self._forward([windows[key] for key in batch], length)
                records = np.empty(len(batch), self.record)
                records["key"], records["vector"] = [np.void(key) for key in batch], vectors
                f.write(records.tobytes())
                f.flush()
                self.known.update(zip(batch, vectors, strict=True))
                order = order[len(batch) :]
                bar.update(len(batch))

    def _token_ids(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Of each text; a thousand texts at a time, since the tokenizer's own records of a text are large."""
        for start in range(0, len(texts), 1000):
            for encoding in self.tokenizer.encode_batch(texts[start : start + 1000], add_special_tokens=False):
                yield np.array(encoding.ids, np.int32)

    @torch.inference_mode()
    def _forward(self, windows: list[np.ndarray], length: int) -> np.ndarray:
        first, last = (self.tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
        ids = torch.zeros(BATCH, length, dtype=torch.int64)
        mask = torch.zeros(BATCH, length)
        for row, window in enumerate(windows):
            ids[row, : len(window) + 2] = torch.tensor([first, *window.tolist(), last])
            mask[row, : len(window) + 2] = 1
        mask[len(windows) :, 0] = 1  # rows that only fill up
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, L, E)
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=-1)[: len(windows)].numpy()


def padded_length(window: np.ndarray) -> int:
    """Tokens that a window takes in a forward pass: with the model's own two, rounded up to a multiple of 32."""
    return math.ceil((len(window) + 2) / 32) * 32


def close_pairs(a: np.ndarray, b: np.ndarray, threshold: float, progress: str) -> Iterator[tuple[int, int]]:
    """All (i, j) with cosine a[i] b[j] at or above `threshold`; where b is a, those with i < j. a (W, E), b (V, E)."""
    tiles = [(i, j) for i in range(0, len(a), TILE) for j in range(0, len(b), TILE) if b is not a or j >= i]
    for i, j in tqdm(tiles, desc=progress, disable=len(tiles) < 30, mininterval=1):
        close = a[i : i + TILE] @ b[j : j + TILE].T >= threshold
        if b is a and i == j:
            close = np.triu(close, 1)
        rows, columns = np.nonzero(close)
        yield from zip((rows + i).tolist(), (columns + j).tolist(), strict=True)


def text_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The similarity of two texts from their windows: each window's best match in the other text, averaged over a's
    windows and over b's, and the smaller of the two."""
    cosines = a @ b.T
    return float(min(cosines.max(1).mean(), cosines.max(0).mean()))
