"""A slow twin of the model, its loss and its decoder: loops over sentences, candidates, heads and positions.

Nothing is padded, cached or shared between passes: `SlowModel` reads one sentence and one target at a time,
`slow_decode` encodes the source anew in every pass of every candidate and projects every position onto the vocabulary.
"""

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F

from tests.helpers import reference


class SlowModel:
    """The network, from its weights alone. Ids are lists without padding."""

    def __init__(self, model):
        self.config = model.config
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}

    def linear(self, name, vector):
        return self.weights[f"{name}.weight"] @ vector + self.weights[f"{name}.bias"]

    def norm(self, name, vector):
        centred = vector - vector.mean()
        scaled = centred / (centred.pow(2).mean() + self.config.layer_norm_eps).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def residual(self, name, states, block):
        """The two orders of normalisation and residual connection."""
        if self.config.normalize_before:
            outputs = block([self.norm(name, state) for state in states])
            return [state + output for state, output in zip(states, outputs, strict=True)]
        outputs = block(states)
        return [self.norm(name, state + output) for state, output in zip(states, outputs, strict=True)]

    def position(self, stack, rank):
        """Embedding of the token number `rank`, counted from 0."""
        first, dim = self.config.position_offset, self.config.d_model
        index = rank + (self.config.pad_token_id + 1 if first is None else first)
        if self.config.position_embedding_type == "learned":
            return self.weights[f"model.{stack}.embed_positions.weight"][index]
        step = math.log(10000.0) / (dim // 2 if first == 0 else dim // 2 - 1)
        angles = [index * math.exp(-step * i) for i in range(dim // 2)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    def embed(self, stack, tokens):
        scale = math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0
        table = self.weights[f"model.{stack}.embed_tokens.weight"]
        return [scale * table[token] + self.position(stack, rank) for rank, token in enumerate(tokens)]

    def attention(self, name, num_heads, queries, keys, values, exclude_self=False):
        """One output vector for each query; position q does not see key q with `exclude_self`."""
        width = self.config.d_model // num_heads
        queries = [self.linear(f"{name}.q_proj", query) for query in queries]
        keys = [self.linear(f"{name}.k_proj", key) for key in keys]
        values = [self.linear(f"{name}.v_proj", value) for value in values]
        outputs = []
        for q, query in enumerate(queries):
            visible = [k for k in range(len(keys)) if not (exclude_self and k == q and len(keys) > 1)]
            heads = []
            for head in range(num_heads):
                part = slice(head * width, (head + 1) * width)
                scores = torch.stack([query[part] @ keys[k][part] / math.sqrt(width) for k in visible])
                probs = scores.softmax(dim=0)
                heads.append(sum(p * values[k][part] for p, k in zip(probs, visible, strict=True)))
            outputs.append(self.linear(f"{name}.out_proj", torch.cat(heads)))
        return outputs

    def feed_forward(self, name, states):
        activation = F.gelu if self.config.activation_function == "gelu" else F.relu
        return [self.linear(f"{name}.fc2", activation(self.linear(f"{name}.fc1", state))) for state in states]

    def encode(self, source):
        """Source tokens -> their states, and the length logits."""
        lengths = self.weights["model.encoder.embed_lengths.weight"]
        states = [lengths[0], *self.embed("encoder", source)]
        for i in range(self.config.encoder_layers):
            name, heads = f"model.encoder.layers.{i}", self.config.encoder_attention_heads
            attend = lambda x, name=name, heads=heads: self.attention(f"{name}.self_attn", heads, x, x, x)  # noqa: E731
            states = self.residual(f"{name}.self_attn_layer_norm", states, attend)
            states = self.residual(f"{name}.final_layer_norm", states, lambda x, name=name: self.feed_forward(name, x))
        if self.config.normalize_before:
            states = [self.norm("model.encoder.layer_norm", state) for state in states]
        length_logits = lengths @ states[0]
        length_logits[0] = -math.inf
        return states[1:], length_logits

    def decode(self, encoder_states, canvas):
        """Canvas of T tokens -> logits (T, V)."""
        config, heads = self.config, self.config.decoder_attention_heads
        states = self.embed("decoder", canvas)
        places = [self.position("decoder", rank) for rank in range(len(canvas))]
        blind = config.exclude_self_attention
        for i in range(config.decoder_layers):
            name = f"model.decoder.layers.{i}"
            blocks = {"self_attn": lambda x, name: self.attention(f"{name}.self_attn", heads, x, x, x, blind)}
            if config.positional_attention:
                blocks["position_attn"] = lambda x, name: self.attention(
                    f"{name}.position_attn", heads, places, places, x, blind
                )
            blocks["encoder_attn"] = lambda x, name: self.attention(
                f"{name}.encoder_attn", heads, x, encoder_states, encoder_states
            )
            for block, attend in blocks.items():
                states = self.residual(
                    f"{name}.{block}_layer_norm", states, lambda x, attend=attend, name=name: attend(x, name)
                )
            states = self.residual(f"{name}.final_layer_norm", states, lambda x, name=name: self.feed_forward(name, x))
        if config.normalize_before:
            states = [self.norm("model.decoder.layer_norm", state) for state in states]
        return torch.stack([self.project(state) for state in states])

    def project(self, state):
        logits = self.weights["lm_head.weight"] @ state
        return logits + self.weights["lm_head.bias"] if self.config.output_bias else logits

    def __call__(self, source, canvas):
        """(logits (T, V), length logits (L,), encoder logits (S, V)) of one sentence."""
        states, length_logits = self.encode(source)
        return self.decode(states, canvas), length_logits, torch.stack([self.project(state) for state in states])


def slow_loss(config, sentences, logits, length_logits, encoder_logits):
    """Eq. 8 with the length term, and its four parts, from a list of sentences.

    Args:
        sentences: dicts of lists without padding: `labels`, `masked` (bools), `encoder_targets` (-100 where none).
        logits, length_logits, encoder_logits: for each sentence (T, V), (L,), (S, V).
    """
    nll = encoder = ngram = length = 0.0
    num_masked = sum(sum(sentence["masked"]) for sentence in sentences)
    for sentence, target_rows, length_row, source_rows in zip(
        sentences, logits, length_logits, encoder_logits, strict=True
    ):
        probs = target_rows.double().softmax(dim=-1).tolist()
        masked = [t for t, is_masked in enumerate(sentence["masked"]) if is_masked]
        nll += reference.smoothed_nll(
            [probs[t] for t in masked], [sentence["labels"][t] for t in masked], config.label_smoothing
        )
        ngram += reference.ngram_loss(
            probs, sentence["labels"], sentence["masked"], config.ngram_size, config.ngram_alignment
        )
        source_probs = source_rows.double().softmax(dim=-1).tolist()
        for s, token in enumerate(sentence["encoder_targets"]):
            if token != -100:
                encoder -= math.log(source_probs[s][token])
        length_probs, target = length_row.double().softmax(dim=-1).tolist(), len(sentence["labels"])
        weights = {target: 1.0}
        if std := config.length_smoothing:
            weights = {size: math.exp(-0.5 * ((size - target) / std) ** 2) for size in range(1, len(length_row))}
        logs = sum(weight * math.log(length_probs[size]) for size, weight in weights.items())
        length -= logs / sum(weights.values())
    parts = {
        "nll_loss": nll / num_masked,
        "encoder_loss": encoder / num_masked,
        "ngram_loss": ngram / num_masked,
        "length_loss": length / len(sentences),
    }
    loss = (
        parts["nll_loss"]
        + config.encoder_loss_weight * parts["encoder_loss"]
        + config.ngram_loss_weight * parts["ngram_loss"]
        + config.length_loss_weight * parts["length_loss"]
    )
    return loss, parts


def remasked_positions(log_probs, count, set_size=1, first=(), fixed=()):
    """The `count` positions that are masked again.

    By rising probability, but those of `first` before all others, each token takes along its set: the `set_size`
    consecutive tokens that begin with it, or the last ones of the row; first itself, then the nearest. Those `fixed`
    are left out.
    """
    length, taken = len(log_probs), []
    for token in sorted(range(length), key=lambda t: (t not in first, log_probs[t])):
        begin = max(0, min(token, length - set_size))
        members = range(begin, min(begin + set_size, length))
        for position in sorted(members, key=lambda p: (abs(p - token), p)):
            if token not in fixed and position not in (*taken, *fixed):
                taken.append(position)
    return taken[:count]


def num_remasked(length, iteration, num_iterations, schedule):
    if schedule == "linear":
        return max(1, length * (num_iterations - iteration) // num_iterations)
    return max(1, math.floor(length * math.cos(math.pi * iteration / (2 * num_iterations)) + 1e-9))


def wrong_repeats(source, tokens, repeatable):
    """Positions of tokens that equal the one before: not those of `repeatable`, nor pairs that the source has."""
    in_source = [one for one, two in pairwise(source) if one == two]
    return [
        t + 1
        for t, (one, two) in enumerate(pairwise(tokens))
        if one == two and one not in repeatable and one not in in_source
    ]


def less_probable_repeats(source, tokens, log_probs, repeatable):
    """Of each two equal neighbours the less probable one, of equally probable ones the second."""
    return [t if log_probs[t] <= log_probs[t - 1] else t - 1 for t in wrong_repeats(source, tokens, repeatable)]


def without_repeats(source, tokens, log_probs, repeatable):
    """Tokens and log-probabilities with one token, the most probable, in place of each run of equal ones."""
    wrong, shorter, best = wrong_repeats(source, tokens, repeatable), [], []
    for t, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
        if t in wrong:
            best[-1] = max(best[-1], log_prob)
        else:
            shorter.append(token)
            best.append(log_prob)
    return shorter, best


def full_log_probs(model, source, canvas, suppressed):
    """States (T, D) and log-probabilities (T, V) of one canvas by a forward pass over the source and the canvas."""
    outputs = model.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([canvas]))
    logits = model.lm_head(outputs.last_hidden_state)[0].float()
    logits[:, suppressed] = -math.inf
    return outputs.last_hidden_state[0], logits.log_softmax(dim=-1)


def slow_path(crf, states, log_probs, canvas, wanted, beam):
    """The best path of the CRF through the tokens of one canvas, and its log-probabilities, in lists of T.

    These are means of the log-marginals and of the network's log-probabilities.

    Args:
        states, log_probs: (T, D) and (T, V).
        wanted: positions to predict, whose `beam` most probable tokens are candidates; the others are given.
    """
    rows = [
        dict(sorted(enumerate(row.tolist()), key=lambda pair: -pair[1])[:beam]) if t in wanted else {canvas[t]: 0.0}
        for t, row in enumerate(log_probs)
    ]
    left, right = crf.left.weight.tolist(), crf.right.weight
    steps = [{}]
    for one, two in pairwise(states):
        dynamic = crf.dynamic_out(crf.dynamic_in(torch.cat([one, two])).relu()).view(right.shape[1], -1)
        matrix = torch.eye(len(dynamic)) + dynamic
        t = len(steps)
        steps.append({(a, b): float(torch.tensor(left[a]) @ matrix @ right[b]) for a in rows[t - 1] for b in rows[t]})
    best = {token: (score, [token]) for token, score in rows[0].items()}
    for t in range(1, len(rows)):
        best = {
            token: max((before + steps[t][path[-1], token] + score, [*path, token]) for before, path in best.values())
            for token, score in rows[t].items()
        }
    path = max(best.values())[1]

    def total(rows):
        """The logarithm of the sum over all paths."""
        sums = {token: math.exp(score) for token, score in rows[0].items()}
        for t in range(1, len(rows)):
            sums = {
                token: math.exp(score) * sum(x * math.exp(steps[t][before, token]) for before, x in sums.items())
                for token, score in rows[t].items()
            }
        return math.log(sum(sums.values()))

    everything = total(rows)
    through = [[*rows[:t], {token: rows[t][token]}, *rows[t + 1 :]] for t, token in enumerate(path)]
    marginals = [total(restricted) - everything for restricted in through]
    return path, [(marginals[t] + rows[t][token]) / 2 for t, token in enumerate(path)]


class SlowCandidate:
    """One target of one length on its way through the passes."""

    def __init__(self, model, source, length, options):
        self.model, self.source, self.length, self.options = model, source, length, options
        self.tried_length = length
        self.repeatable = [0, 1, 3, 4, *(options["repeatable_tokens"] or [])]
        self.tokens = list(options["canvas"] or [model.config.mask_token_id] * length)
        self.free = [t for t, token in enumerate(self.tokens) if token == model.config.mask_token_id]
        self.log_probs = [0.0] * length
        self.num_passes, self.done, self.history = 0, False, []

    def step(self, iteration):
        """Pass number `iteration` + 1, unless the candidate stops before it."""
        config, options = self.model.config, self.options
        threshold = options["confidence_threshold"]
        limit = 1.0 if threshold is None else math.log(threshold)  # no log-probability reaches 1
        if iteration > 0 and min(self.log_probs) >= limit:
            self.done = True
            return
        if options["delete_repeats"] and 0 < iteration == options["num_iterations"] - 1:
            self.drop_repeats()
        if iteration == 0:
            chosen = self.free
        else:
            num_free = len(self.free) if options["canvas"] else self.length
            count = num_remasked(num_free, iteration, options["num_iterations"], options["remask_schedule"])
            set_size = config.ngram_size if options["remask_adjacent"] else 1
            first = []
            if options["remask_repeats"]:
                first = less_probable_repeats(self.source, self.tokens, self.log_probs, self.repeatable)
            first = [t for t in first if self.log_probs[t] < limit]
            fixed = [t for t in range(self.length) if t not in self.free] if options["canvas"] else []
            chosen = remasked_positions(self.log_probs, count, set_size, first, fixed)
            chosen = [t for t in chosen if self.log_probs[t] < limit]
        canvas = [config.mask_token_id if t in chosen else token for t, token in enumerate(self.tokens)]
        if config.decoder_input == "source_copy":
            canvas = [self.source[t * len(self.source) // self.length] for t in range(self.length)]
        states, log_probs = full_log_probs(self.model, self.source, canvas, options["suppress_tokens"])
        before = list(self.tokens)
        if options["update_all"]:
            chosen = self.free if options["canvas"] else range(self.length)
        best, found = log_probs.argmax(dim=-1).tolist(), log_probs.amax(dim=-1).tolist()
        if config.crf_rank and options["crf_beam"] > 1:
            best, found = slow_path(self.model.crf, states, log_probs, canvas, chosen, options["crf_beam"])
        for t in chosen:
            self.tokens[t], self.log_probs[t] = best[t], found[t]
        self.num_passes += 1
        self.history.append((canvas, list(self.tokens), list(self.log_probs)))
        if options["early_stop"] and iteration > 0 and self.tokens == before:
            self.done = True

    def drop_repeats(self):
        self.tokens, self.log_probs = without_repeats(self.source, self.tokens, self.log_probs, self.repeatable)
        self.length = len(self.tokens)

    def finished(self):
        """As it is compared with others: without the repeats that are collapsed."""
        text = copy.copy(self)
        text.unfinished = self
        if self.options["collapse_repeats"]:
            text.drop_repeats()
        return text

    def score(self):
        length = self.length + self.options["length_offset"]
        return sum(self.log_probs) / length ** self.options["length_normalization"]

    def text(self):
        eos = self.model.config.eos_token_id
        return self.tokens[: self.tokens.index(eos) + 1] if eos in self.tokens else list(self.tokens)


def slow_consensus(candidate, candidates):
    """Mean over the other candidates of the share of tokens, and of pairs of tokens, that the two have in common."""
    shares = []
    for other in candidates:
        if other is candidate:
            continue
        one, two = candidate.text(), other.text()
        for first, second in ((one, two), (list(pairwise(one)), list(pairwise(two)))):
            common = sum(item in second for item in first) + sum(item in first for item in second)
            shares.append(common / max(1, len(first) + len(second)))
    return sum(shares) / len(shares) if shares else 0.0


def slow_ranking(candidates):
    """Candidates of one source by their scores and what they have in common, best first, as they are returned."""
    candidates = [candidate.finished() for candidate in candidates]
    for candidate in candidates:
        shortest = min(len(other.text()) for other in candidates)
        weight = candidate.options["consensus_weight"] * (shortest >= candidate.options["consensus_min_length"])
        candidate.final_score = candidate.score() + weight * slow_consensus(candidate, candidates)
    return sorted(candidates, key=lambda candidate: -candidate.final_score)


DEFAULTS = {
    "num_iterations": 10,
    "num_length_candidates": 4,
    "remask_adjacent": True,
    "remask_schedule": "linear",
    "early_stop": False,
    "suppress_tokens": [1, 4, 0],
    "length_normalization": 1.0,
    "length_offset": 0.0,
    "consensus_weight": 0.0,
    "consensus_min_length": 0,
    "num_return_sequences": 1,
    "prune_candidates": None,
    "prune_to": 1,
    "confidence_threshold": None,
    "update_all": False,
    "remask_repeats": False,
    "delete_repeats": False,
    "collapse_repeats": False,
    "repeatable_tokens": None,
    "length_shift": 0,
    "crf_beam": 8,
    "canvas": None,
    "max_length": None,
}


@torch.no_grad()
def slow_decode(model, source, target_length=None, **options):
    """The best `SlowCandidate`s of one source, best first, and all that were tried."""
    options = {**DEFAULTS, **options}
    if options["canvas"]:
        suppressed = [*options["suppress_tokens"], model.config.eos_token_id]
        options |= {"num_length_candidates": 1, "suppress_tokens": suppressed}
        options |= {"delete_repeats": False, "collapse_repeats": False}
        target_length = len(options["canvas"])
    longest = min(model.config.max_target_length, options["max_length"] or model.config.max_target_length)
    if target_length is None:
        length_logits = model.model.encoder(input_ids=torch.tensor([source])).length_logits[0].tolist()
        best_first = sorted(range(1, len(length_logits)), key=lambda length: -length_logits[length])
        shift = options["length_shift"]
        best_first = [min(max(2, length + shift), longest) for length in best_first if length <= longest]
        best_first += sorted(range(2, longest + 1), key=lambda length: -length if shift > 0 else length)  # the nearest
    else:  # one longer, one shorter, two longer, ...
        middle = min(max(2, target_length), longest)
        steps = [step for more in range(1, longest) for step in (more, -more)]
        best_first = [middle, *(middle + step for step in steps if 2 <= middle + step <= longest)]
    lengths = list(dict.fromkeys(best_first))[: options["num_length_candidates"]]
    candidates = [SlowCandidate(model, source, length, options) for length in lengths]
    going_on = candidates
    for iteration in range(options["num_iterations"]):
        for candidate in going_on:
            if not candidate.done:
                candidate.step(iteration)
        if options["prune_candidates"] == iteration + 1:
            best = slow_ranking(going_on)[: max(options["num_return_sequences"], options["prune_to"])]
            going_on = [candidate.unfinished for candidate in best]
    ranked = slow_ranking(going_on)
    return ranked[: options["num_return_sequences"]], candidates
