"""What a generation took."""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass
class Report:
    """Figures of one generation.

    Attributes:
        load_seconds: that the program took to load.
        prompt_tokens: of the prompt.
        reused_tokens: of these, how many the session held already.
        prefill_seconds: from the call to the first token.
        generated_tokens: of the answer.
        drafted_tokens: guesses that were verified.
        accepted_tokens: of these, how many are in the answer.
        decode_seconds: from the first token to the last.
        finish_reason: ``"stop"`` (a token or text that ends the answer), ``"length"``, ``"cancelled"``, or "" before
            the end.
        limit: tokens a second at which the weights, keys and values that the answer's tokens read take the bandwidth of
            the GPU that the program is made for; 0 where that is not known.
        peak_bytes: most memory that the runtime used on the device, in this process so far.
    """

    load_seconds: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_seconds: float = 0.0
    finish_reason: str = ""
    limit: float = 0.0
    peak_bytes: int = 0

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt that were computed in a second; 0 where there is no time."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float:
        """Tokens after the first in a second; 0 where there is one token or none."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)

    def to_json(self) -> str:
        """All figures, rates too, as one line of JSON."""
        rates = {"prompt_rate": self.prompt_rate, "decode_rate": self.decode_rate}
        return json.dumps(dataclasses.asdict(self) | rates)

    def __str__(self) -> str:
        """Two lines for people."""
        reused = f" ({self.reused_tokens} of them reused)" if self.reused_tokens else ""
        share = f" ({100 * self.decode_rate / self.limit:.1f}% of the bandwidth's limit)" if self.limit else ""
        drafts = f" ({self.accepted_tokens} of {self.drafted_tokens} drafted)" if self.drafted_tokens else ""
        return (
            f"load {self.load_seconds:.2f} s; prompt {self.prompt_tokens} tokens{reused}, "
            f"{self.prompt_rate:.1f} tok/s, first token after {self.prefill_seconds * 1e3:.1f} ms\n"
            f"answer {self.generated_tokens} tokens{drafts}, {self.decode_rate:.1f} tok/s{share}, ended by "
            f"{self.finish_reason}; peak memory {self.peak_bytes / 2**20:.1f} MiB"
        )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0
