"""llama.cpp's samplers: chains from stages, grammars beside them, and the model's own distribution.

A C++ exception or an abort inside a sampler ends the process, so a grammar is only ever told of a token it has just
allowed, and it stands beside the chain: sample freely, check that one token, and mask the vocabulary only on refusal
(a tenth of the time that masking every token takes).
"""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from common.messages import Grammar, Likelihood, TokenLogprob
from neuron.worker.engine import EngineError
from neuron.worker.sampling import (
    Draw,
    Dry,
    Greedy,
    LogitBias,
    MinP,
    Mirostat,
    NoEnd,
    Penalties,
    Stage,
    Temperature,
    TopK,
    TopP,
    Typical,
    Xtc,
)
from neuron.worker.triggers import TriggerMatcher

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
"""llama_token_data."""
_LIKELIEST = 1024
"""Tried on a refusal before the whole vocabulary: masking costs 0.15 µs a token."""
_NEGLIGIBLE = 12.0
"""A token whose logit is so far below the best allowed one is 160,000 times less likely."""
_MIROSTAT_M = 100
_ATTEMPTS = 32
"""Tokens that end a trigger but go on with what the grammar forbids, before it begins at the next token instead."""

free_sampler = llama_cpp.llama_sampler_free


def new_chain(vocab: Any, stages: Sequence[Stage], seen: list[int]) -> Any:
    """Return a chain that has seen the last of these tokens, as many as it can remember."""
    params = llama_cpp.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = llama_cpp.llama_sampler_chain_init(params)
    for stage in stages:
        llama_cpp.llama_sampler_chain_add(chain, _sampler(vocab, stage))
    window = max((s.window for s in stages if isinstance(s, Penalties | Dry)), default=0)
    for token in seen[-window:] if window else []:
        llama_cpp.llama_sampler_accept(chain, token)
    return chain


def _sampler(vocab: Any, stage: Stage) -> Any:
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    match stage:
        case LogitBias(entries=entries):
            return _bias(size, entries)
        case NoEnd():
            ends = [i for i in range(size) if llama_cpp.llama_vocab_is_eog(vocab, i)]
            return _bias(size, [(i, -math.inf) for i in ends])
        case Penalties():
            return llama_cpp.llama_sampler_init_penalties(size, *stage)
        case Dry(multiplier, base, length, window, breakers):
            texts = (ctypes.c_char_p * len(breakers))(*[b.encode() for b in breakers])
            return llama_cpp.llama_sampler_init_dry(vocab, multiplier, base, length, window, texts, len(breakers))
        case TopK(k=k):
            return llama_cpp.llama_sampler_init_top_k(k)
        case Typical(p=p):
            return llama_cpp.llama_sampler_init_typical(p, 1)
        case TopP(p=p):
            return llama_cpp.llama_sampler_init_top_p(p, 1)
        case MinP(p=p):
            return llama_cpp.llama_sampler_init_min_p(p, 1)
        case Xtc(probability, threshold, seed):
            return llama_cpp.llama_sampler_init_xtc(probability, threshold, 1, seed)
        case Temperature(temperature=temperature):
            return llama_cpp.llama_sampler_init_temp(temperature)
        case Greedy():
            return llama_cpp.llama_sampler_init_greedy()
        case Draw(seed=seed):
            return llama_cpp.llama_sampler_init_dist(seed)
        case Mirostat(1, tau, eta, seed):
            return llama_cpp.llama_sampler_init_mirostat(size, seed, tau, eta, _MIROSTAT_M)
        case Mirostat(_, tau, eta, seed):
            return llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _bias(size: int, entries: Sequence[tuple[int, float]]) -> Any:
    biases = (llama_cpp.llama_logit_bias * len(entries))(*[llama_cpp.llama_logit_bias(*e) for e in entries])
    return llama_cpp.llama_sampler_init_logit_bias(size, len(entries), biases)


class LlamaSampler:
    """A sampler chain of one sequence."""

    def __init__(self, chain: Any, context: Any, rows: list[int]) -> None:
        self._chain = chain
        self._context = context
        self._rows = rows

    def sample(self, chunk: int) -> int:
        """Choose the token after a chunk of the last decode, and accept it."""
        return int(llama_cpp.llama_sampler_sample(self._chain, self._context, self._rows[chunk]))

    def close(self) -> None:
        """Free the chain and its samplers."""
        llama_cpp.llama_sampler_free(self._chain)


class ConstrainedSampler(LlamaSampler):
    """A chain and a grammar beside it, which waits for its trigger if it has one."""

    def __init__(
        self,
        chain: Any,
        context: Any,
        rows: list[int],
        vocab: Any,
        stages: Sequence[Stage],
        constraint: Grammar,
        output: list[int],
        piece: Callable[[int], bytes],
    ) -> None:
        """Raises EngineError: llama.cpp cannot read the grammar, or the output so far does not fit it."""
        super().__init__(chain, context, rows)
        self._vocab = vocab
        self._size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self._piece = piece
        # A bias may lift a token from anywhere; everything else only lowers some, or looks at the likeliest.
        self._may_cut = not any(isinstance(s, LogitBias | NoEnd) for s in stages)
        self._one = np.zeros(1, _CANDIDATE)
        self._grammar = llama_cpp.llama_sampler_init_grammar(vocab, constraint.gbnf.encode(), b"root")
        if not self._grammar:
            raise EngineError("llama.cpp cannot read the grammar")
        self._trigger = TriggerMatcher(constraint.triggers) if constraint.triggers else None
        try:
            for token in output:
                if not self._take(token):
                    raise EngineError("the answer so far does not fit the grammar")
        except EngineError:
            llama_cpp.llama_sampler_free(self._grammar)
            raise

    def sample(self, chunk: int) -> int:
        """Choose the token after a chunk of the last decode, and accept it; an end token if none is allowed."""
        row = self._rows[chunk]
        if self._trigger is not None:
            token = self._sample_freely(row)
        else:
            logits = self._logits(row)
            token = self._apply(logits, None)
            if not self._allows(token):
                allowed = self._allowed(logits)
                if allowed is None:
                    return self._end()
                token = self._apply(logits, allowed)
            if not llama_cpp.llama_vocab_is_eog(self._vocab, token):
                llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the chain and the grammar."""
        super().close()
        llama_cpp.llama_sampler_free(self._grammar)

    def _sample_freely(self, row: int) -> int:
        """Choose a token before the trigger; one that ends it must go on as the grammar begins."""
        assert self._trigger is not None
        logits = self._logits(row)
        for _ in range(_ATTEMPTS):
            token = self._apply(logits, None)
            if llama_cpp.llama_vocab_is_eog(self._vocab, token) or self._take(token):
                return token
            logits = logits.copy()
            logits[token] = -math.inf
        self._trigger = None
        return token

    def _take(self, token: int) -> bool:
        """Count a token as output if it fits: text before the trigger, or what the grammar allows."""
        if self._trigger is None:
            if not self._allows(token):
                return False
            llama_cpp.llama_sampler_accept(self._grammar, token)
            return True
        piece = self._piece(token)
        rest = self._trigger.rest(piece)
        if rest is None:
            self._trigger.take(piece)
            return True
        if rest and not self._take_text(rest):
            return False
        self._trigger = None
        return True

    def _take_text(self, text: bytes) -> bool:
        """Tell the grammar of a text that is only the end of a token, by tokens of its own; False if it forbids it."""
        tokens = _spell(self._vocab, text, self._piece)
        if tokens is None:
            return False
        trial = llama_cpp.llama_sampler_clone(self._grammar)
        for token in tokens:
            if not self._allows(token, trial):
                llama_cpp.llama_sampler_free(trial)
                return False
            llama_cpp.llama_sampler_accept(trial, token)
        llama_cpp.llama_sampler_free(self._grammar)
        self._grammar = trial
        return True

    def _allows(self, token: int, grammar: Any = None) -> bool:
        self._one[0] = (token, 0.0, 0.0)
        llama_cpp.llama_sampler_apply(grammar or self._grammar, ctypes.byref(_array(self._one)))
        return bool(self._one["logit"][0] != -math.inf)

    def _allowed(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64] | None:
        """Return the tokens that the grammar allows, all of them that matter; None if there are none."""
        if self._may_cut and self._size > 2 * _LIKELIEST:
            likeliest = np.argpartition(logits, -_LIKELIEST)[-_LIKELIEST:]
            allowed = self._mask(logits, likeliest)
            if len(allowed) and logits[allowed].max() - logits[likeliest].min() > _NEGLIGIBLE:
                return allowed
        allowed = self._mask(logits, _every(self._size))
        return allowed if len(allowed) else None

    def _mask(self, logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        candidates = _candidates(logits, tokens)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(_array(candidates)))
        allowed: npt.NDArray[np.int64] = tokens[candidates["logit"] != -math.inf]
        return allowed

    def _apply(self, logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64] | None) -> int:
        """Run the chain over some tokens, or all."""
        candidates = _candidates(logits, _every(self._size) if tokens is None else tokens)
        array = _array(candidates)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _logits(self, row: int) -> npt.NDArray[np.float32]:
        return _logits(self._context, row, self._size)

    def _end(self) -> int:
        for token in (llama_cpp.llama_vocab_eot(self._vocab), llama_cpp.llama_vocab_eos(self._vocab)):
            if token >= 0 and llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return int(token)
        raise EngineError("no token fits the grammar, and the model has none that ends an answer")


@functools.cache
def _every(size: int) -> npt.NDArray[np.int64]:
    return np.arange(size)


def _candidates(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    candidates = np.zeros(len(tokens), _CANDIDATE)
    candidates["id"] = tokens
    candidates["logit"] = logits if len(tokens) == len(logits) else logits[tokens]
    return candidates


def _array(candidates: npt.NDArray[Any]) -> Any:
    data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data))
    return llama_cpp.llama_token_data_array(data, len(candidates), -1, False)


def _logits(context: Any, row: int, size: int) -> npt.NDArray[np.float32]:
    """Return a view of the logits at a row of the last batch; valid until the next decode."""
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, row), (size,))


def likelihoods(
    context: Any, row: int, size: int, token: int, count: int, piece: Callable[[int], bytes]
) -> TokenLogprob:
    """Return the log-softmax of the unmodified logits for one token, and for the `count` likeliest."""
    logits = _logits(context, row, size).astype(np.float64)
    logits -= logits.max()
    logits -= math.log(np.exp(logits).sum())
    top: list[int] = []
    if count:
        top = np.argpartition(logits, -count)[-count:].tolist()
        top.sort(key=lambda i: (-logits[i], i))
    return TokenLogprob(
        Likelihood(piece(token), float(logits[token])), [Likelihood(piece(i), float(logits[i])) for i in top]
    )


def _spell(vocab: Any, text: bytes, piece: Callable[[int], bytes]) -> list[int] | None:
    """Return tokens whose pieces are exactly this text; None if the vocabulary has none."""
    ids = (ctypes.c_int32 * (len(text) + 8))()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), ids, len(ids), False, False)
    tokens = [int(i) for i in ids[: max(count, 0)]]
    while tokens and b"".join(map(piece, tokens)) != text:
        tokens = tokens[1:]  # some vocabularies put a space before a text
    return tokens or None
