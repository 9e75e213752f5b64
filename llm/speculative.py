"""Decoding by drafts: several guessed tokens are verified in one call (Leviathan et al., "Fast inference from
transformers via speculative decoding", 2023).

A draft is one guess and no distribution. So the token at each place is drawn from the model's own distribution, as
without drafts, by the same random number, and the guess is accepted if it is that token: it is accepted with the
probability that the model gives it, and what is drawn in its place has the distribution of the rest. The answer is
that without drafts, token for token, as far as logits of several rows at once are those of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from etcuda.errors import GenerationError
from etcuda.llm.draft import Drafter
from etcuda.llm.program import TextProgram
from etcuda.llm.report import Report
from etcuda.llm.sampling import Allow, Sampler, SamplingOptions
from etcuda.llm.text_session import TokenSession


def check_drafts(program: TextProgram) -> None:
    """Checks that a program verifies drafts.

    Raises:
        GenerationError: it has no method for that.
    """
    if program.verify_rows < 2:
        raise GenerationError(
            "draft: expected a program with the method verify, got one without. Export with --verify-rows 8."
        )


def drawn_with_drafts(
    session: TokenSession,
    program: TextProgram,
    prompt: Sequence[int],
    options: SamplingOptions,
    count: int,
    drafter: Drafter,
    report: Report,
    is_cancelled: Callable[[], bool],
    allow: Allow | None = None,
) -> Iterator[int]:
    """The tokens of an answer, whatever ends it; none if it was cancelled before the first.

    Args:
        session: whose sequence becomes the prompt and the answer.
        program: of the session.
        prompt: all of it, what the session holds too; checked.
        options: how tokens are chosen.
        count: most tokens, which the caches have room for.
        drafter: guesses.
        report: its numbers of drafted and accepted tokens are kept.
        is_cancelled: whether to end.
        allow: which tokens may be drawn; ``None`` for all.

    Raises:
        GenerationError: the program failed, or verifies no drafts.
    """
    check_drafts(program)
    logits = session.prefill(prompt, is_cancelled)
    if logits is None:
        return
    sampler = Sampler(options, prompt, allow)
    token = sampler.choose(logits)
    made = [token]
    mark = session.reader()
    yield token
    while len(made) < count:
        session.check_reader(mark)
        # The last token of an answer is never computed, and so not drafted for.
        most = min(program.verify_rows - 1, count - len(made) - 1)
        draft = drafter.propose([*prompt, *made], most)[:most] if most > 0 else []
        if not draft:
            token = sampler.choose(session.decode(token))
            made.append(token)
            mark = session.reader()
            yield token
            continue
        report.drafted_tokens += len(draft)
        rows = session.verify([token, *draft])
        mark = session.reader()
        for place, row in enumerate(rows):
            session.check_reader(mark)
            token = sampler.choose(row)
            made.append(token)
            accepted = place < len(draft) and token == draft[place]
            if not accepted:
                # Those behind were computed for another sequence.
                session.rollback(len(rows) - 1 - place)
            report.accepted_tokens += accepted
            mark = session.reader()
            yield token
            if not accepted:
                break
