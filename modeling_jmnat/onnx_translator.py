"""A whole translation as one ONNX graph: source ids in, the best candidates out, every pass inside.

Nothing but ONNX Runtime is needed to run it, in any language that it knows. It decodes as `passes_jmnat.py` does, with
the options of `TRANSLATOR_OPTIONS`; what makes rows stop or leave, and rerankers, need the graphs of single passes. B
sources, C length candidates, R = B C rows, N candidates returned, S source and T target tokens, M to predict.
"""

import torch
from onnx import GraphProto, TensorProto

from .configuration_jmnat import resolve_options
from .modeling_jmnat import JMNatForConditionalGeneration
from .onnx_blocks import DecoderWriter, EncoderWriter
from .onnx_graph import GraphWriter
from .onnx_model import LOWEST, PASS, TRANSLATOR, token_bias

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


def translator_defaults(model: JMNatForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What the graph's inputs are when they are left out, by name: the options of the generation configuration."""
    config, options = model.config, resolve_options(model.generation_config)
    return {
        "num_iterations": torch.tensor(options.num_iterations),
        "num_length_candidates": torch.tensor([options.num_length_candidates]),
        "max_length": torch.tensor([options.max_length or config.max_target_length]),
        "token_bias": token_bias(config.vocab_size, model._suppressed_tokens(options, "cpu")),
        "remask_adjacent": torch.tensor(options.remask_adjacent),
        "num_return_sequences": torch.tensor([options.num_return_sequences]),
        "length_offset": torch.tensor(float(options.length_offset)),
        "length_normalization": torch.tensor(float(options.length_normalization)),
        "consensus_weight": torch.tensor(float(options.consensus_weight)),
    }


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
        self.defaults = translator_defaults(model)
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
        encoder = EncoderWriter(graph, self.model, ids, mask)
        length_logits, source_states = encoder.write()
        lengths = self.write_lengths(length_logits)
        self.write_sources(lengths, source_states, encoder.source_bias())
        self.write_canvases(lengths)
        tokens, log_probs = self.write_passes()
        self.write_best(lengths, tokens, log_probs)
        return graph

    def write_lengths(self, logits: str) -> str:
        """The lengths to try (B, C), as `JMNatGenerationMixin._choose_lengths` has them."""
        graph = self.graph
        longest = graph.add(
            "Min", self.option("max_length"), graph.add("Sub", graph.size(logits, 1), graph.integers(1))
        )
        given = graph.option("target_lengths", torch.empty(0, dtype=torch.int64), ("G",))
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

    def write_sources(self, lengths: str, states: list[tuple[str, str]], bias: str) -> None:
        """What cross-attention needs of the sources, of each row: (R, S, D) twice a layer, (R, 1, 1, S)."""
        graph = self.graph
        source_of_row = graph.add("Range", self.zero, graph.add("Size", lengths), self.one)
        source_of_row = graph.add("Div", source_of_row, self.num_candidates)

        def of_rows(value: str) -> str:
            return graph.add("Gather", value, source_of_row)

        self.source_states = [(of_rows(key), of_rows(value)) for key, value in states]
        self.source_bias = of_rows(bias)

    def write_canvases(self, lengths: str) -> None:
        """What all passes share: the rows' lengths, masks and probabilities of positional attention."""
        graph = self.graph
        self.lengths = graph.reshape(lengths, -1, 1)  # (R, 1)
        longest = graph.add("ReduceMax", lengths, keepdims=0)
        self.num_positions = graph.reshape(longest, 1)
        self.positions = graph.add("Range", self.zero, longest, self.one)  # (T,)
        self.target_mask = graph.add("Less", self.positions, self.lengths)  # (R, T)
        attend = graph.add("Unsqueeze", self.target_mask, graph.integers(1, 2))  # (R, 1, 1, T)
        if self.config.exclude_self_attention:
            others = graph.add("Equal", self.positions, graph.reshape(self.positions, -1, 1))
            attend = graph.add("And", attend, graph.add("Not", others))
        else:
            rows = graph.size(self.lengths, 0)
            attend = graph.add("Expand", attend, graph.shape(rows, 1, self.num_positions, self.num_positions))
        self.self_bias = graph.add("Where", attend, self.no_log_prob, self.lowest)  # (R, 1, T, T)
        self.position_probs = self.write_position_probs() if self.position_tables else []

    def write_position_probs(self) -> list[str]:
        """As `PositionalAttention.of_lengths`, by layer: (R, H, T, T)."""
        graph, first = self.graph, self.graph.integers(0)
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

    def write_passes(self) -> tuple[str, str]:
        """Tokens and their log-probabilities (R, T) after all passes."""
        graph = self.graph
        self.token_bias = self.option("token_bias")
        if self.config.ngram_size > 1:
            self.remask_adjacent = self.option("remask_adjacent")
            self.write_sets(self.config.ngram_size)
        tokens = graph.add("Where", self.target_mask, self.mask_token, self.padding)
        infinite = graph.constant(torch.tensor(torch.inf))  # padding is never masked
        log_probs = graph.add("Where", self.target_mask, self.lowest, infinite)
        self.write_counts()
        tokens, log_probs = graph.add(
            "Loop", self.num_iterations, "", tokens, log_probs, num_results=2, body=self.write_pass()
        )
        return tokens, graph.add("Where", self.target_mask, log_probs, self.no_log_prob)

    def write_counts(self) -> None:
        """How many positions each pass predicts, k passes: at `most` (k, 1), and which of the first T of an order."""
        graph = self.graph
        left = graph.add("Range", self.num_iterations, self.zero, graph.constant(torch.tensor(-1)))
        left = graph.reshape(left, -1, 1, 1)
        counts = graph.add("Div", graph.add("Mul", self.lengths, left), self.num_iterations)
        counts = graph.add("Max", counts, self.one)  # (k, R, 1)
        self.most = graph.add("ReduceMax", counts, graph.integers(1), keepdims=0)
        self.chosen = graph.add("Less", self.positions, counts)  # (k, R, T)

    def write_sets(self, set_size: int) -> None:
        """Which tokens each position takes along, as `RemaskOrder`: `members` (R, T n), `distances` (R, T, n)."""
        graph = self.graph
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
        graph = self.graph.subgraph(PASS, loop=True)
        iteration = graph.input("iteration", (), INT64)
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

    def with_consensus(self, scores: str, tokens: str, ends: str, num_sources: str) -> str:
        """Scores (B, C) and the weighted consensus of tokens (R, T) with ends (R, 1), as `passes_jmnat.consensus`."""
        weight = self.option("consensus_weight")
        graph = self.graph.subgraph("consensus")

        def pairs(operator: str, values: str) -> str:
            """Of values (B, C, T) each with each, (B, C, C, T, T)."""
            return graph.add(
                operator,
                graph.add("Unsqueeze", values, graph.integers(2, 4)),
                graph.add("Unsqueeze", values, graph.integers(1, 3)),
            )

        inside = graph.add("Less", self.positions, ends)
        tokens, inside = (
            graph.reshape(values, num_sources, self.num_candidates, self.num_positions) for values in (tokens, inside)
        )
        same = graph.add("And", pairs("Equal", tokens), pairs("And", inside))
        axes, far = graph.integers(3, 4), torch.iinfo(torch.int64).max
        first = graph.add("Slice", same, graph.integers(0, 0), graph.integers(-1, -1), axes)
        second = graph.add("Slice", same, graph.integers(1, 1), graph.integers(far, far), axes)
        ends = graph.reshape(ends, num_sources, self.num_candidates)
        shares = []
        for counts, found in ((ends, same), (graph.add("Sub", ends, self.one), graph.add("And", first, second))):
            found = graph.add("ReduceMax", graph.add("Cast", found, to=FLOAT), graph.integers(4), keepdims=0)
            found = graph.add("ReduceSum", found, graph.integers(3), keepdims=0)  # (B, C, C)
            found = graph.add("Add", found, graph.add("Transpose", found, perm=[0, 2, 1]))
            counts = graph.add("Add", *(graph.add("Unsqueeze", counts, graph.integers(axis)) for axis in (1, 2)))
            counts = graph.add("Cast", graph.add("Max", counts, self.one), to=FLOAT)
            shares.append(graph.add("Div", found, counts))
        number = graph.add("Range", self.zero, graph.reshape(self.num_candidates), self.one)
        others = graph.add("Not", graph.add("Equal", number, graph.reshape(number, -1, 1)))
        shares = graph.add("Mul", graph.add("Add", *shares), graph.add("Cast", others, to=FLOAT))
        shares = graph.add("ReduceSum", shares, graph.integers(2), keepdims=0)  # (B, C)
        count = graph.add("Max", graph.add("Sub", self.num_candidates, self.one), self.one)
        count = graph.add("Cast", graph.add("Add", count, count), to=FLOAT)
        total = graph.add("Add", scores, graph.add("Mul", weight, graph.add("Div", shares, count)))
        alone = self.graph.subgraph("without_consensus")
        return self.graph.add(
            "If",
            self.graph.add("Greater", weight, self.no_log_prob),
            then_branch=graph.body((total, ("B", "C"), FLOAT)),
            else_branch=alone.body((alone.add("Identity", scores), ("B", "C"), FLOAT)),
        )

    def write_best(self, lengths: str, tokens: str, log_probs: str) -> None:
        """Score the candidates and return the best, as `JMNatGenerationMixin._finish_decoding` does."""
        graph = self.graph
        num_returned = self.option("num_return_sequences")
        offset, power = self.option("length_offset"), self.option("length_normalization")
        end = graph.constant(torch.tensor(self.config.eos_token_id))
        after_end = graph.add("Add", self.positions, self.one)  # (T,)
        never = graph.constant(torch.tensor(torch.iinfo(torch.int64).max))
        ends = graph.add("Where", graph.add("Equal", tokens, end), after_end, never)
        ends = graph.add("ReduceMin", ends, graph.integers(1), keepdims=1)
        ends = graph.add("Min", ends, self.lengths)  # (R, 1)
        divisors = graph.add("Pow", graph.add("Add", graph.add("Cast", self.lengths, to=FLOAT), offset), power)
        scores = graph.add("Div", graph.add("ReduceSum", log_probs, graph.integers(1), keepdims=1), divisors)
        num_sources = graph.size(lengths, 0)
        scores = graph.reshape(scores, num_sources, -1)  # (B, C)
        scores = self.with_consensus(scores, tokens, ends, num_sources)
        scores, best = graph.add("TopK", scores, num_returned, axis=1, num_results=2)  # (B, N)
        sources = graph.add("Range", self.zero, graph.reshape(num_sources), self.one)
        rows = graph.add("Add", best, graph.reshape(graph.add("Mul", sources, self.num_candidates), -1, 1))
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
        graph.output("lengths", graph.add("Gather", graph.reshape(self.lengths, -1), rows), ("B", "N"), INT64)
        graph.output("candidate_lengths", lengths, ("B", "C"), INT64)
        graph.output("best_candidates", best, ("B", "N"), INT64)
