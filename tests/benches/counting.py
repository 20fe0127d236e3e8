"""What is counted: the rows of each step, their tokens, their FLOP, and the middle of many numbers."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

U64 = (1 << 64) - 1


def mix(value: int) -> int:
    """SplitMix64's mixing function, as in src/rng.rs."""
    z = (value + 0x9E37_79B9_7F4A_7C15) & U64
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & U64
    return z ^ (z >> 31)


def epoch_order(rows: int, seed: int) -> list[int]:
    """The order in which Equipoise's first epoch goes through its rows (`epoch_order` in src/data/batch.rs).

    Were it another one, the check of tokens and first losses would tell.
    """
    name = 0xCBF2_9CE4_8422_2325
    for byte in b"epoch_order":
        name = ((name ^ byte) * 0x0100_0000_01B3) & U64
    state = mix(seed)
    for part in (name, 0):
        state = mix(state ^ mix(part))
    order = list(range(rows))
    for i in range(rows - 1, 0, -1):
        bound = i + 1
        limit = U64 - U64 % bound
        while True:
            value = mix(state)
            state = (state + 0x9E37_79B9_7F4A_7C15) & U64
            if value < limit:
                break
        j = value % bound
        order[i], order[j] = order[j], order[i]
    return order


@dataclass(frozen=True)
class Counts:
    """What a model's FLOP are made of, and those of an adapter on it."""

    body_parameters: int
    head_parameters: int
    lora_parameters: int
    attention_width: int


@dataclass(frozen=True)
class StepWork:
    """What one step has to do, whoever does it."""

    tokens: int
    """Tokens without padding."""
    supervised: int
    """Tokens that are predicted and learnt: the first one of a row never is."""
    squares: int
    """The sum of the squares of the rows' lengths."""

    def attention_flop(self, counts: Counts) -> float:
        """`6·n²·d` a row, `d` = layers · heads · head width.

        Forward `q·kᵀ` and `p·v`, `2·n²·d` each, of which causal attention needs half; backward twice as much.
        """
        return 6.0 * self.squares * counts.attention_width

    def flop(self, counts: Counts) -> float:
        """FLOP that the step needs. What is computed again under recompute is not counted.

        - `4·P` a token for the frozen matrices of the decoder blocks: `2·P` forward, `2·P` for `dX`; there is no `dW`.
        - `4·H` a supervised token for the head.
        - `6·L` a token for the adapters: forward, `dX`, `dW`.
        - attention, as above. All else (norms, softmax, the optimizer) counts as nothing.
        """
        frozen = 4.0 * (counts.body_parameters * self.tokens + counts.head_parameters * self.supervised)
        return frozen + 6.0 * counts.lora_parameters * self.tokens + self.attention_flop(counts)


def work_of(rows: list[dict[str, Any]]) -> StepWork:
    """The work of a step on these rows of `ids`, of which the first `given` are the prompt."""
    lengths = [len(row["ids"]) for row in rows]
    supervised = sum(n - max(row["given"], 1) for n, row in zip(lengths, rows))
    return StepWork(sum(lengths), supervised, sum(n * n for n in lengths))


def write_batches(ids: Path, batches: Path, batch: int, seed: int) -> list[StepWork]:
    """Puts the rows of `ids` into the order of the run, a step a line; returns the work of each."""
    with ids.open() as file:
        rows = [json.loads(line) for line in file]
    order = epoch_order(len(rows), seed)
    works = []
    with batches.open("w") as file:
        for first in range(0, len(rows), batch):
            # Equipoise too has the rows of a step by length.
            step = sorted((rows[i] for i in order[first : first + batch]), key=lambda row: len(row["ids"]))
            file.write(json.dumps(step) + "\n")
            works.append(work_of(step))
    return works


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some numbers."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: list[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values))
