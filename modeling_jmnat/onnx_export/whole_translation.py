"""A whole translation as one ONNX graph: source ids in, the best candidates out, every pass inside.

It runs with nothing but ONNX Runtime, in any programming language with bindings for it. It decodes as
`passes_jmnat.py` does, with the options of `TRANSLATOR_INPUTS`; rerankers and rules that stop single rows need the
graphs of single passes.

This module connects the steps of `decoding_steps.py` with the network of `network.py`. Attributes and arguments are
names of the graph's results. B sources, C length candidates, P of them that remain, R = B C or B P rows, N candidates
returned, S source and T target tokens, L tokens of the longest returned.
"""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from onnx import TensorProto

from ..configuration_jmnat import resolve_options
from ..inference.onnx_runtime import PASS, TRANSLATOR, translator_inputs
from ..modeling_jmnat import JMNatForConditionalGeneration
from . import crf
from . import decoding_steps as steps
from .graph_writer import GraphWriter, State
from .network import DecoderWriter, EncoderWriter

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
COUNTS, TOKENS, LOG_PROBS = (INT64, ("R",)), (INT64, ("R", "T")), (FLOAT, ("R", "T"))  # types and shapes
HISTORY = {"history_canvas": INT64, "history_tokens": INT64, "history_log_probs": FLOAT}  # outputs (k, B, C, T)


class TranslatorWriter:
    """The graph `translator` of a model: the inputs of all passes over all candidates, and their stages.

    Args:
        position_tables: from `positional_projections`; empty for a model without positional attention.
        with_history: the passes are outputs, too, see `HISTORY`.
    """

    def __init__(
        self,
        model: JMNatForConditionalGeneration,
        position_tables: dict[str, torch.Tensor],
        int8: bool,
        with_history: bool = False,
    ):
        self.model, self.config, self.position_tables = model, model.config, position_tables
        self.with_history = with_history
        self.graph = graph = GraphWriter(TRANSLATOR, int8)
        ids, mask = (graph.input(name, ("B", "S"), INT64) for name in ("input_ids", "attention_mask"))
        defaults = translator_inputs(model, resolve_options(model.generation_config))
        names = {name: graph.option(name, default) for name, default in defaults.items()}
        self.options = options = SimpleNamespace(**names)
        encoder = EncoderWriter(graph, model, ids, mask)
        length_logits, self.source_states = encoder.write()
        self.source_bias = encoder.source_bias()
        choice = options.target_lengths, options.num_length_candidates, options.max_length, options.length_shift
        self.candidate_lengths, self.num_candidates = graph.call(steps.choose_lengths, length_logits, *choice)
        self.positions, self.lengths, self.rows, self.tokens, self.log_probs = graph.call(
            steps.canvas_of_masks, self.candidate_lengths, self.config.mask_token_id, self.config.pad_token_id
        )
        self.num_sources = graph.size(self.candidate_lengths, 0)
        self.bounds, self.num_stages = graph.call(
            steps.plan_stages, options.num_iterations, options.prune_candidates, options.delete_repeats
        )
        self.pairs = graph.call(steps.source_pairs, ids, mask)

    def write(self) -> GraphWriter:
        graph, scores = self.graph, self.graph.add("Cast", self.candidate_lengths, to=FLOAT)  # any before the first
        states = (self.rows, *COUNTS), (self.lengths, *COUNTS), (self.tokens, *TOKENS), (self.log_probs, *LOG_PROBS)
        before = (self.tokens, self.tokens, self.log_probs) if self.with_history else ()
        before = tuple(graph.add("Unsqueeze", value, graph.literal(np.array([0]))) for value in before)
        states += (scores, FLOAT, ("B", "P")), *as_states(before)
        rows, lengths, tokens, log_probs, scores, *history = graph.loop(
            "stage", self.num_stages, self.stage, *states, weights=True
        )
        best = tokens, log_probs, lengths, self.positions, rows, self.candidate_lengths
        sequences, token_scores, lengths, indices = graph.call(
            steps.cut_off, *best, self.config.eos_token_id, self.config.pad_token_id
        )
        graph.output("sequences", sequences, ("B", "N", "L"), INT64)
        graph.output("sequences_scores", scores, ("B", "N"))
        graph.output("token_scores", token_scores, ("B", "N", "L"))
        graph.output("lengths", lengths, ("B", "N"), INT64)
        graph.output("candidate_lengths", self.candidate_lengths, ("B", "C"), INT64)
        graph.output("best_candidates", indices, ("B", "N"), INT64)
        for (name, dtype), values in zip(HISTORY.items(), history, strict=False):
            passes = graph.call(steps.passes_of, values, self.candidate_lengths)
            graph.output(name, passes, ("k", "B", "C", "T"), dtype)
        return graph

    def stage(
        self,
        graph: GraphWriter,
        number: str,
        rows: str,
        lengths: str,
        tokens: str,
        log_probs: str,
        _: str,
        *history: str,
    ) -> list[str]:
        """Passes over the same rows, then the choice of the rows that remain, and their scores."""
        options = self.options
        is_last, deletes, begin, num_passes, num_kept = graph.call(
            steps.plan_stage,
            *(number, self.bounds, self.num_stages, options.prune_candidates, options.prune_to),
            *(self.num_candidates, options.num_return_sequences),
            *(options.num_iterations, options.delete_repeats),
        )
        pairs = graph.add("Gather", self.pairs, graph.add("Div", rows, self.num_candidates))
        without = partial(graph.call, steps.rows_without_repeats)
        vocabulary = options.repeatable, pairs, self.config.pad_token_id
        tokens, log_probs, lengths = without(tokens, log_probs, lengths, self.positions, deletes, *vocabulary)
        passes = Passes(graph, self, rows, lengths, begin, pairs)
        states = (tokens, *TOKENS), (log_probs, *LOG_PROBS), *as_states(history)
        tokens, log_probs, *after = graph.loop(PASS, num_passes, passes.one_pass, *states)
        canvas = tokens, log_probs
        texts = without(*canvas, lengths, self.positions, options.collapse_repeats, *vocabulary)
        scoring = options.length_offset, options.length_normalization, options.consensus_weight
        scoring += (options.consensus_min_length,)
        scores = graph.call(steps.scores, *texts, self.positions, self.num_sources, *scoring, self.config.eos_token_id)
        scores, best = graph.call(steps.choose_best, scores, num_kept, graph.add("Not", is_last))
        tokens, log_probs, lengths = (
            graph.add("Where", is_last, text, value) for text, value in zip(texts, (*canvas, lengths), strict=True)
        )
        return [*(graph.add("Gather", value, best) for value in (rows, lengths, tokens, log_probs)), scores, *after]


def as_states(history: Sequence[str]) -> list[State]:
    """Of a loop: passes (n, B C, T) up to now."""
    return [(values, dtype, ("n", "BC", "T")) for values, dtype in zip(history, HISTORY.values(), strict=False)]


class Passes:
    """Passes over the same rows, beginning with number `begin`: what they share, computed once, and one pass.

    Args:
        graph: the graph around the loop over the passes.
        rows: (R,) indices among all B C candidates.
        lengths: (R,).
        pairs: (R, S - 1), see `source_pairs`.
    """

    def __init__(
        self, graph: GraphWriter, translator: TranslatorWriter, rows: str, lengths: str, begin: str, pairs: str
    ):
        self.model, self.config, self.options = translator.model, translator.config, translator.options
        self.begin, self.rows, self.lengths, self.positions = begin, rows, lengths, translator.positions
        self.repeats = self.options.remask_repeats, self.options.repeatable, pairs
        source = graph.add("Div", rows, translator.num_candidates)
        self.source_states = [
            tuple(graph.add("Gather", value, source) for value in layer) for layer in translator.source_states
        ]
        self.source_bias = graph.add("Gather", translator.source_bias, source)
        canvas, set_size = (self.lengths, translator.positions), self.config.ngram_size
        self.self_bias = graph.call(steps.attention_bias, *canvas, not self.config.exclude_self_attention)
        self.position_probs = []
        if translator.position_tables:
            query, key = (graph.constant(translator.position_tables[name]) for name in ("query", "key"))
            probs = graph.call(steps.position_probs, query, key, self.self_bias, *canvas)
            layers = (graph.literal(np.array(layer)) for layer in range(self.config.decoder_layers))
            self.position_probs = [graph.add("Gather", probs, layer) for layer in layers]
        self.most, self.valid = graph.call(steps.num_remasked, *canvas, self.options.num_iterations)
        self.sets = graph.call(steps.neighbour_sets, *canvas, set_size) if set_size > 1 else []

    def one_pass(self, graph: GraphWriter, number: str, tokens: str, log_probs: str, *history: str) -> list[str]:
        """Mask the least probable tokens again and predict them, as `MaskPredict.one_pass`."""
        most, valid = graph.call(steps.of_pass, graph.add("Add", number, self.begin), self.most, self.valid)
        keys = graph.call(steps.repeats_first, tokens, log_probs, self.positions, *self.repeats)
        columns = graph.shaped(self.order(graph, keys, most), ("R", "M"), INT64)
        masked = graph.call(steps.put, tokens, columns, valid, self.config.mask_token_id)
        shared = self.self_bias, self.position_probs, self.source_states, self.source_bias
        decoder = DecoderWriter(graph, self.model, masked, columns, *shared)
        new_tokens, new_log_probs = self.predict(decoder, valid)
        tokens = graph.call(steps.put, tokens, columns, valid, new_tokens)
        log_probs = graph.call(steps.put, log_probs, columns, valid, new_log_probs)
        passes = graph.call(steps.record, *history, self.rows, masked, tokens, log_probs) if history else []
        return [tokens, log_probs, *passes]

    def predict(self, decoder: DecoderWriter, valid: str) -> tuple[str, str]:
        """New tokens and log-probabilities (R, M), of the decoder's positions that are valid (R, M)."""
        if self.model.crf is None:
            return decoder.write_tokens(decoder.write_states(), self.options.token_bias)
        return crf.write_path(decoder, self.options.token_bias, valid, self.options.crf_beam)

    def order(self, graph: GraphWriter, keys: str, most: str) -> str:
        """The M positions (R, M) with the lowest keys, which are masked first."""
        if not self.sets:
            return graph.call(steps.least_probable, keys, most)
        adjacent, set_size = self.options.remask_adjacent, self.config.ngram_size
        return graph.call(steps.remask_order, keys, most, adjacent, *self.sets, set_size)
