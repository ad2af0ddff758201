"""What the front end hands to the engine."""

from dataclasses import dataclass

from quire.types.ids import RequestId
from quire.types.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to continue it. Everything textual has already become token ids.

    Attributes:
        request_id: Unique among the requests in the engine.
        prompt_token_ids: At least one token.
        sampling: With `max_tokens` and `seed` filled in.
        eos_token_ids: End-of-sequence tokens; empty when the request ignores them.
        bad_words_token_ids: Token sequences that must not be produced.
        priority: Lower runs first under the priority policy.
        tenant: Who asks; tenants share the engine fairly. Empty where nobody is told apart.
        weight: The tenant's share relative to the others'.
        arrival_time: Seconds on the host's monotonic clock.
        cache_salt: Requests share cached prefixes only with equal salts.
        adapter: Name of the adapter, part of the prefix-cache key; empty for the base model.
        grammar: What the answer must look like, in the words of llguidance; empty for free text.
        produced_token_ids: Per sample, the tokens that an earlier engine already produced. Generation
            continues after them and they are not sent again.
    """

    request_id: RequestId
    prompt_token_ids: list[int]
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    arrival_time: float = 0.0
    cache_salt: str = ""
    adapter: str = ""
    grammar: str = ""
    produced_token_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def num_samples(self) -> int:
        """Sequences that this request runs."""
        return self.sampling.num_samples

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token that ends a sequence."""
        return frozenset(self.eos_token_ids) | frozenset(self.sampling.stop_token_ids)
