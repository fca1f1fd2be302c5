"""A whole translation as one ONNX graph: source ids in, the best candidates out, every pass inside.

Nothing but ONNX Runtime is needed to run it, in any language that it knows. It decodes as `passes_jmnat.py` does, with
the options of `TRANSLATOR_INPUTS`; rerankers and rules that let single rows stop need the graphs of single passes. B
sources, C length candidates, P of them that go on, R = B C or B P rows, N candidates returned, S source and T target
tokens, M to predict.
"""

import torch
from onnx import GraphProto, TensorProto

from ..configuration_jmnat import resolve_options
from ..inference.onnx_runtime import LOWEST, PASS, TRANSLATOR, translator_inputs
from ..modeling_jmnat import JMNatForConditionalGeneration
from .graph_writer import GraphWriter
from .network import DecoderWriter, EncoderWriter

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


class TranslatorWriter:
    """The graph `translator` of a model.

    Args:
        positions: as `onnx_export.positional_projections`, empty for a model without positional attention.
    """

    def __init__(
        self,
        model: JMNatForConditionalGeneration,
        positions: dict[str, torch.Tensor],
        int8: bool,
    ):
        self.model, self.config, self.position_tables = model, model.config, positions
        self.defaults = translator_inputs(model, resolve_options(model.generation_config))
        self.graph = graph = GraphWriter(TRANSLATOR, int8)
        self.zero, self.one = (graph.constant(torch.tensor(value)) for value in (0, 1))
        self.mask_token, self.padding = (
            graph.constant(torch.tensor(token)) for token in (self.config.mask_token_id, self.config.pad_token_id)
        )
        self.lowest, self.no_log_prob = (graph.constant(torch.tensor(value)) for value in (LOWEST, 0.0))

    def option(self, name: str) -> str:
        return self.graph.option(name, self.defaults[name])

    def write(self) -> GraphWriter:
        graph = self.graph
        ids, mask = (graph.input(name, ("B", "S"), INT64) for name in ("input_ids", "attention_mask"))
        self.num_iterations = self.option("num_iterations")
        self.num_candidates = self.option("num_length_candidates")
        self.num_returned = self.option("num_return_sequences")
        self.length_offset, self.length_power = self.option("length_offset"), self.option("length_normalization")
        self.consensus_weight = self.option("consensus_weight")
        self.token_bias = self.option("token_bias")
        if self.config.ngram_size > 1:
            self.remask_adjacent = self.option("remask_adjacent")
        encoder = EncoderWriter(graph, self.model, ids, mask)
        length_logits, self.states_of_sources = encoder.write()
        self.bias_of_sources = encoder.source_bias()
        lengths = self.write_lengths(length_logits)
        self.write_best(lengths, *self.write_stages(lengths))
        return graph

    def write_lengths(self, logits: str) -> str:
        """The lengths to try (B, C), as `JMNatGenerationMixin._choose_lengths` has them."""
        graph = self.graph
        longest = graph.add(
            "Min", self.option("max_length"), graph.add("Sub", graph.size(logits, 1), graph.integers(1))
        )
        given = self.option("target_lengths")
        are_given = graph.add("Greater", graph.reshape(graph.size(given, 0)), self.zero)

        around = graph.subgraph("around")
        index = around.add("Range", self.zero, around.reshape(self.num_candidates), self.one)
        step = around.add("Div", around.add("Add", index, self.one), around.integers(2))  # 0, 1, 1, 2, 2, ..
        odd = around.add("Mod", index, around.integers(2))
        sign = around.add("Sub", around.add("Add", odd, odd), self.one)
        lengths = around.add("Add", around.reshape(given, -1, 1), around.add("Mul", step, sign))
        around = around.body((lengths, ("B", "C"), INT64))

        best = graph.subgraph("best")
        classes = best.add("Add", longest, best.integers(1))
        allowed = best.add("Slice", logits, best.integers(0), classes, best.integers(1))
        _, lengths = best.add("TopK", allowed, self.num_candidates, num_results=2)
        best = best.body((lengths, ("B", "C"), INT64))

        lengths = graph.add("If", are_given, then_branch=around, else_branch=best)
        most = graph.add("Max", longest, graph.integers(2))
        return graph.add("Min", graph.add("Max", lengths, graph.integers(2)), most)

    def write_stages(self, lengths: str) -> tuple[str, str, str]:
        """All passes over all candidates, or those up to `prune_candidates` over all and the rest over the best.

        Returns:
            Numbers (R,) of the candidates that went on, their tokens and log-probabilities (R, T).
        """
        graph = self.graph
        self.num_sources = graph.size(lengths, 0)
        self.lengths_of_all = graph.reshape(lengths, -1, 1)  # (B C, 1)
        longest = graph.add("ReduceMax", lengths, keepdims=0)
        self.num_positions = graph.reshape(longest, 1)
        self.positions = graph.add("Range", self.zero, longest, self.one)  # (T,)
        rows = graph.add("Range", self.zero, graph.add("Size", lengths), self.one)
        inside = graph.add("Less", self.positions, self.lengths_of_all)
        tokens = graph.add("Where", inside, self.mask_token, self.padding)
        infinite = graph.constant(torch.tensor(torch.inf))  # padding is never masked
        log_probs = graph.add("Where", inside, self.lowest, infinite)

        self.prune_after = self.option("prune_candidates")  # passes, 0: never
        prunes = graph.add("Less", self.zero, self.prune_after)
        prunes = graph.add("And", prunes, graph.add("LessOrEqual", self.prune_after, self.num_iterations))
        num_kept = graph.add("Min", self.option("prune_to"), self.num_candidates)
        self.num_kept = graph.add("Max", num_kept, self.num_returned)
        self.last_stage = graph.add("Cast", prunes, to=INT64)
        num_stages = graph.add("Add", self.last_stage, self.one)
        return tuple(
            graph.add("Loop", num_stages, "", rows, tokens, log_probs, num_results=3, body=self.write_stage())
        )

    def write_stage(self) -> GraphProto:
        """Passes over the same rows, and after the first of two stages the choice of those that go on."""
        self.stage = graph = self.graph.subgraph("stage", loop=True, weights=True)
        number = graph.input("stage", (), INT64)
        going_on = graph.input("stage_going_on", (), TensorProto.BOOL)
        rows = graph.input("rows", ("R",), INT64)
        tokens = graph.input("stage_tokens", ("R", "T"), INT64)
        log_probs = graph.input("stage_log_probs", ("R", "T"))
        self.write_sources(rows)
        self.write_canvases(rows)
        if self.config.ngram_size > 1:
            self.write_sets(self.config.ngram_size)
        self.write_counts()
        prunes = graph.add("Less", number, self.last_stage)
        end = graph.add("Where", prunes, self.prune_after, self.num_iterations)
        self.begin = graph.add("Mul", number, self.prune_after)
        passes = graph.add("Sub", end, self.begin)
        results = graph.add("Loop", passes, "", tokens, log_probs, num_results=2, body=self.write_pass())

        def typed(names: list[str]) -> list[tuple]:
            types = ((("K",), INT64), (("K", "T"), INT64), (("K", "T"), FLOAT))
            return [(name, *kind) for name, kind in zip(names, types, strict=True)]

        prune, keep = graph.subgraph("prune"), graph.subgraph("keep")
        scores, _ = self.write_scores(prune, self.lengths, *results)
        _, best = prune.add("TopK", scores, self.num_kept, axis=1, num_results=2)
        best, _ = prune.add("TopK", best, self.num_kept, axis=1, largest=0, num_results=2)  # in their order
        best = prune.reshape(self.write_rows(prune, best, self.num_candidates), -1)
        kept = [prune.add("Gather", value, best, axis=0) for value in (rows, *results)]
        all_of_them = [keep.add("Identity", value) for value in (rows, *results)]
        chosen = graph.add(
            "If",
            prunes,
            num_results=3,
            then_branch=prune.body(*typed(kept)),
            else_branch=keep.body(*typed(all_of_them)),
        )
        return graph.body((graph.add("Identity", going_on), (), TensorProto.BOOL), *typed(chosen))

    def write_rows(self, graph: GraphWriter, index: str, per_source: str) -> str:
        """Rows (B, n) of the candidates `index` (B, n) of each source, which has `per_source` rows (1,)."""
        sources = graph.add("Range", self.zero, graph.reshape(self.num_sources), self.one)
        return graph.add("Add", index, graph.reshape(graph.add("Mul", sources, per_source), -1, 1))

    def write_sources(self, rows: str) -> None:
        """What cross-attention needs of the sources, of each row: (R, S, D) twice a layer, (R, 1, 1, S)."""
        source_of_row = self.stage.add("Div", rows, self.num_candidates)

        def of_rows(value: str) -> str:
            return self.stage.add("Gather", value, source_of_row)

        self.source_states = [(of_rows(key), of_rows(value)) for key, value in self.states_of_sources]
        self.source_bias = of_rows(self.bias_of_sources)

    def write_canvases(self, rows: str) -> None:
        """What all passes share: the rows' lengths, masks and probabilities of positional attention."""
        graph = self.stage
        self.lengths = graph.add("Gather", self.lengths_of_all, rows)  # (R, 1)
        self.target_mask = graph.add("Less", self.positions, self.lengths)  # (R, T)
        attend = graph.add("Unsqueeze", self.target_mask, graph.integers(1, 2))  # (R, 1, 1, T)
        if self.config.exclude_self_attention:
            others = graph.add("Equal", self.positions, graph.reshape(self.positions, -1, 1))
            attend = graph.add("And", attend, graph.add("Not", others))
        else:
            num_rows = graph.size(self.lengths, 0)
            attend = graph.add("Expand", attend, graph.shape(num_rows, 1, self.num_positions, self.num_positions))
        self.self_bias = graph.add("Where", attend, self.no_log_prob, self.lowest)  # (R, 1, T, T)
        self.position_probs = self.write_position_probs() if self.position_tables else []

    def write_position_probs(self) -> list[str]:
        """As `PositionalAttention.of_lengths`, by layer: (R, H, T, T)."""
        graph, first = self.stage, self.stage.integers(0)
        query, key = (graph.constant(self.position_tables[name]) for name in ("query", "key"))
        query = graph.add("Slice", query, first, self.num_positions, graph.integers(2))
        key = graph.add("Slice", key, first, self.num_positions, graph.integers(2))
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))  # (layers, H, T, T)
        scores = graph.add("Unsqueeze", scores, graph.integers(1))
        probs = graph.add("Softmax", graph.add("Add", scores, self.self_bias), axis=-1)  # (layers, R, H, T, T)
        inside = graph.add("Unsqueeze", graph.add("Cast", self.target_mask, to=FLOAT), graph.integers(1, 3))
        probs = graph.add("Mul", probs, inside)
        layers = graph.add(
            "Split", probs, axis=0, num_outputs=self.config.decoder_layers, num_results=self.config.decoder_layers
        )
        layers = layers if isinstance(layers, list) else [layers]
        return [graph.add("Squeeze", layer, first) for layer in layers]

    def write_counts(self) -> None:
        """How many positions each pass predicts, k passes: at `most` (k, 1), and which of the first T of an order."""
        graph = self.stage
        left = graph.add("Range", self.num_iterations, self.zero, graph.constant(torch.tensor(-1)))
        left = graph.reshape(left, -1, 1, 1)
        counts = graph.add("Div", graph.add("Mul", self.lengths, left), self.num_iterations)
        counts = graph.add("Max", counts, self.one)  # (k, R, 1)
        self.most = graph.add("ReduceMax", counts, graph.integers(1), keepdims=0)
        self.chosen = graph.add("Less", self.positions, counts)  # (k, R, T)

    def write_sets(self, set_size: int) -> None:
        """Which tokens each position takes along, as `RemaskOrder`: `members` (R, T n), `distances` (R, T, n)."""
        graph = self.stage
        self.never = graph.add("Mul", self.num_positions, graph.integers(set_size))
        begin = graph.add("Sub", self.lengths, graph.integers(set_size))
        begin = graph.add("Max", graph.add("Min", begin, self.positions), self.zero)  # (R, T)
        members = graph.add(
            "Add", graph.add("Unsqueeze", begin, graph.integers(2)), graph.constant(torch.arange(set_size))
        )
        lengths = graph.add("Unsqueeze", self.lengths, graph.integers(2))
        inside = graph.add("Unsqueeze", self.target_mask, graph.integers(2))
        inside = graph.add("And", inside, graph.add("Less", members, lengths))
        distances = graph.add("Abs", graph.add("Sub", members, graph.reshape(self.positions, -1, 1)))
        self.distances = graph.add("Where", inside, distances, self.never)
        last = graph.add("Sub", self.num_positions, graph.integers(1))
        self.members = graph.add("Flatten", graph.add("Min", members, last), axis=1)
        self.position_of_each = graph.add("Expand", self.positions, graph.add("Shape", self.target_mask))
        self.no_rank = graph.add("Expand", self.never, graph.add("Shape", self.target_mask))

    def write_pass(self) -> GraphProto:
        """One pass: mask again, predict, keep."""
        graph = self.stage.subgraph(PASS, loop=True)
        iteration = graph.add("Add", graph.input("iteration", (), INT64), self.begin)
        going_on = graph.input("going_on", (), TensorProto.BOOL)
        tokens = graph.input("tokens_before", ("R", "T"), INT64)
        log_probs = graph.input("log_probs_before", ("R", "T"))
        most = graph.add("Gather", self.most, iteration)
        order = self.order(graph, log_probs, most)  # (R, M)
        chosen = graph.add("Gather", self.chosen, iteration)
        chosen = graph.add("Slice", chosen, graph.integers(0), most, graph.integers(1))  # (R, M)

        def at_chosen(before: str, new: str) -> str:
            kept = graph.add("GatherElements", before, order, axis=1)
            return graph.add("ScatterElements", before, order, graph.add("Where", chosen, new, kept), axis=1)

        canvas = at_chosen(tokens, self.mask_token)
        shared = (self.self_bias, self.position_probs, self.source_states, self.source_bias)
        decoder = DecoderWriter(graph, self.model, canvas, order, *shared)
        predicted, predicted_log_probs = decoder.write_tokens(decoder.write_states(), self.token_bias)
        return graph.body(
            (graph.add("Identity", going_on), (), TensorProto.BOOL),
            (at_chosen(tokens, predicted), ("R", "T"), INT64),
            (at_chosen(log_probs, predicted_log_probs), ("R", "T"), FLOAT),
        )

    def order(self, graph: GraphWriter, log_probs: str, most: str) -> str:
        """The first `most` positions by `RemaskOrder`; log_probs (R, T) are infinite at padding."""

        def smallest(graph: GraphWriter, values: str, count: str) -> str:
            return graph.add("TopK", values, count, axis=1, largest=0, num_results=2)[1]  # of equal ones the first

        if self.config.ngram_size == 1:
            return smallest(graph, log_probs, most)
        alone, adjacent = graph.subgraph("alone"), graph.subgraph("adjacent")
        order = smallest(adjacent, log_probs, self.num_positions)
        rank = adjacent.add("ScatterElements", order, order, self.position_of_each, axis=1)
        keys = adjacent.add("Mul", rank, adjacent.integers(self.config.ngram_size))
        keys = adjacent.add("Add", adjacent.add("Unsqueeze", keys, adjacent.integers(2)), self.distances)
        keys = adjacent.add("Flatten", keys, axis=1)
        keys = adjacent.add("ScatterElements", self.no_rank, self.members, keys, axis=1, reduction="min")
        return graph.add(
            "If",
            self.remask_adjacent,
            then_branch=adjacent.body((smallest(adjacent, keys, most), ("R", "M"), INT64)),
            else_branch=alone.body((smallest(alone, log_probs, most), ("R", "M"), INT64)),
        )

    def write_scores(self, graph: GraphWriter, lengths: str, tokens: str, log_probs: str) -> tuple[str, str]:
        """Scores of candidates (B, P) of lengths (R, 1) and where their texts end (R, 1); `MaskPredict.scores`."""
        end = graph.constant(torch.tensor(self.config.eos_token_id))
        after_end = graph.add("Add", self.positions, self.one)  # (T,)
        never = graph.constant(torch.tensor(torch.iinfo(torch.int64).max))
        ends = graph.add("Where", graph.add("Equal", tokens, end), after_end, never)
        ends = graph.add("ReduceMin", ends, graph.integers(1), keepdims=1)
        ends = graph.add("Min", ends, lengths)
        divisors = graph.add("Add", graph.add("Cast", lengths, to=FLOAT), self.length_offset)
        divisors = graph.add("Pow", divisors, self.length_power)
        inside = graph.add("Less", self.positions, lengths)
        log_probs = graph.add("Where", inside, log_probs, self.no_log_prob)
        scores = graph.add("Div", graph.add("ReduceSum", log_probs, graph.integers(1), keepdims=1), divisors)
        scores = graph.reshape(scores, self.num_sources, -1)
        return self.with_consensus(graph, scores, tokens, ends), ends

    def with_consensus(self, around: GraphWriter, scores: str, tokens: str, ends: str) -> str:
        """Scores (B, P) and the weighted consensus of tokens (R, T) with ends (R, 1), as `passes_jmnat.consensus`."""
        graph = around.subgraph("consensus")
        num_candidates = graph.size(scores, 1)

        def pairs(operator: str, values: str) -> str:
            """Of values (B, C, T) each with each, (B, C, C, T, T)."""
            return graph.add(
                operator,
                graph.add("Unsqueeze", values, graph.integers(2, 4)),
                graph.add("Unsqueeze", values, graph.integers(1, 3)),
            )

        inside = graph.add("Less", self.positions, ends)
        tokens, inside = (
            graph.reshape(values, self.num_sources, num_candidates, self.num_positions) for values in (tokens, inside)
        )
        same = graph.add("And", pairs("Equal", tokens), pairs("And", inside))
        axes, far = graph.integers(3, 4), torch.iinfo(torch.int64).max
        first = graph.add("Slice", same, graph.integers(0, 0), graph.integers(-1, -1), axes)
        second = graph.add("Slice", same, graph.integers(1, 1), graph.integers(far, far), axes)
        ends = graph.reshape(ends, self.num_sources, num_candidates)
        shares = []
        for counts, found in ((ends, same), (graph.add("Sub", ends, self.one), graph.add("And", first, second))):
            found = graph.add("ReduceMax", graph.add("Cast", found, to=FLOAT), graph.integers(4), keepdims=0)
            found = graph.add("ReduceSum", found, graph.integers(3), keepdims=0)  # (B, C, C)
            found = graph.add("Add", found, graph.add("Transpose", found, perm=[0, 2, 1]))
            counts = graph.add("Add", *(graph.add("Unsqueeze", counts, graph.integers(axis)) for axis in (1, 2)))
            counts = graph.add("Cast", graph.add("Max", counts, self.one), to=FLOAT)
            shares.append(graph.add("Div", found, counts))
        number = graph.add("Range", self.zero, graph.reshape(num_candidates), self.one)
        others = graph.add("Not", graph.add("Equal", number, graph.reshape(number, -1, 1)))
        shares = graph.add("Mul", graph.add("Add", *shares), graph.add("Cast", others, to=FLOAT))
        shares = graph.add("ReduceSum", shares, graph.integers(2), keepdims=0)  # (B, C)
        count = graph.add("Max", graph.add("Sub", num_candidates, self.one), self.one)
        count = graph.add("Cast", graph.add("Add", count, count), to=FLOAT)
        total = graph.add("Add", scores, graph.add("Mul", self.consensus_weight, graph.add("Div", shares, count)))
        alone = around.subgraph("without_consensus")
        return around.add(
            "If",
            around.add("Greater", self.consensus_weight, self.no_log_prob),
            then_branch=graph.body((total, ("B", "P"), FLOAT)),
            else_branch=alone.body((alone.add("Identity", scores), ("B", "P"), FLOAT)),
        )

    def write_best(self, lengths: str, numbers: str, tokens: str, log_probs: str) -> None:
        """Score the candidates that went on and return the best, as `JMNatGenerationMixin._finish_decoding` does."""
        graph = self.graph
        lengths_of_rows = graph.add("Gather", self.lengths_of_all, numbers)  # (R, 1)
        scores, ends = self.write_scores(graph, lengths_of_rows, tokens, log_probs)
        per_source = graph.size(scores, 1)
        scores, best = graph.add("TopK", scores, self.num_returned, axis=1, num_results=2)  # (B, N)
        rows = self.write_rows(graph, best, per_source)
        numbers = graph.add("Gather", numbers, rows)
        ends = graph.add("Gather", graph.reshape(ends, -1), rows)  # (B, N)
        width = graph.reshape(graph.add("ReduceMax", ends, keepdims=0), 1)
        positions = graph.add("Slice", self.positions, graph.integers(0), width)  # (L,)
        inside = graph.add("Less", positions, graph.add("Unsqueeze", ends, graph.integers(2)))  # (B, N, L)

        def of_best(values: str, padding: str) -> str:
            values = graph.add("Gather", values, rows, axis=0)  # (B, N, T)
            values = graph.add("Slice", values, graph.integers(0), width, graph.integers(2))
            return graph.add("Where", inside, values, padding)

        graph.output("sequences", of_best(tokens, self.padding), ("B", "N", "L"), INT64)
        graph.output("sequences_scores", scores, ("B", "N"))
        graph.output("token_scores", of_best(log_probs, self.no_log_prob), ("B", "N", "L"))
        graph.output("lengths", graph.add("Gather", graph.reshape(lengths, -1), numbers), ("B", "N"), INT64)
        graph.output("candidate_lengths", lengths, ("B", "C"), INT64)
        graph.output("best_candidates", graph.add("Mod", numbers, self.num_candidates), ("B", "N"), INT64)
