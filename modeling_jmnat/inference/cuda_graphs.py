"""`generate` on a GPU as a few graph launches: batches are padded to fixed shapes, each captured as a CUDA graph.

A decoder pass is hundreds of small kernels, which a GPU finishes faster than Python launches them. Here the encoder is
one graph, and all passes with the choice of the best candidate are another. Graphs are captured when a shape first
occurs and kept in a bounded cache. On a CPU, or where capturing fails, the same padded shapes run without graphs.
Shapes: B sentences, C candidates, S source and T target tokens.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..configuration_jmnat import JMNatConfig, JMNatOptions
from ..generation_jmnat import JMNatGenerationMixin
from ..losses_jmnat import JMNatGenerateOutput, choose_candidates
from ..modeling_jmnat import JMNatEncoderOutput, JMNatForConditionalGeneration, as_encoder_output, token_mask
from ..passes_jmnat import Canvas, MaskPredict, Positions

MAX_GRAPHS = 256
WARM_UP_CALLS = 2  # before capturing, because libraries initialise themselves in their first calls
LENGTH_STEP = 8  # attention with a mask is faster for multiples of it
FINE_LENGTHS = 64  # up to this length, buckets are multiples of LENGTH_STEP
SHORTEST_TARGET = 2  # length of the rows that pad a batch


def coarse_bucket(size: int) -> int:
    """`size` rounded up to a quarter of the power of two below it: 1 to 8, 10, 12, 14, 16, 20, 24, ..."""
    step = max(1, 2 ** (size.bit_length() - 3))
    return -(-size // step) * step


def length_bucket(size: int, most: int) -> int:
    """`size` rounded up to a multiple of 8 up to 64, then as `coarse_bucket`; at most `most`, or `size` if larger."""
    bucket = -(-size // LENGTH_STEP) * LENGTH_STEP if size <= FINE_LENGTHS else coarse_bucket(size)
    return max(size, min(bucket, most))


def pad_to(tensor: torch.Tensor, shape: Sequence[int], value=0) -> torch.Tensor:
    """Pad the leading dimensions of `tensor` to `shape`, on the right."""
    missing = [size - have for size, have in zip(shape, tensor.shape, strict=False)]
    if not any(missing):
        return tensor
    widths = [0] * (2 * (tensor.dim() - len(missing)))
    for count in reversed(missing):
        widths += [0, count]
    return F.pad(tensor, widths, value=value)


class CapturedGraph:
    """`function` of tensors of fixed shapes, recorded once on the device of `stream`.

    The result of a call is overwritten by the next call of any graph with the same `pool`.
    """

    def __init__(
        self,
        function: Callable,
        inputs: Sequence[torch.Tensor],
        pool,
        stream: torch.cuda.Stream,
        warm_up_calls: int = WARM_UP_CALLS,
    ):
        self.inputs = [tensor.clone() for tensor in inputs]
        with torch.cuda.device(stream.device):  # which need not be the current one
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(warm_up_calls):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool, stream=stream):
                self.outputs = function(*self.inputs)

    def __call__(self, *inputs: torch.Tensor):
        for static, tensor in zip(self.inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.outputs


class FixedRows(MaskPredict):
    """Passes in which rows that stop keep their places and their tokens, so that all passes have the same shapes.

    `stopped` (R,) is True at these rows; from the beginning at those of `unused` (B,) sentences, which pad the batch.
    Results are written in place, so that later passes can be skipped.
    """

    def __init__(self, *args, unused: torch.Tensor):
        super().__init__(*args)
        self.stopped = unused.repeat_interleave(self.lengths.shape[1])
        self.written = Canvas(*(values.clone() for values in self.rows.canvas))

    @property
    def candidates(self) -> Canvas:
        return self.written

    def predict(self, masked: torch.Tensor, positions: Positions) -> Canvas:
        num_passes, going_on = self.rows.canvas.num_passes + ~self.stopped, ~self.stopped[:, None]
        valid = going_on.expand_as(positions.columns) if positions.valid is None else positions.valid & going_on
        canvas = super().predict(masked, Positions(positions.columns, valid))._replace(num_passes=num_passes)
        for values, new in zip(self.written, canvas, strict=True):
            values.copy_(new)
        return canvas

    def keep(self, going_on: torch.Tensor) -> None:
        self.stopped.logical_or_(~going_on)

    def delete_repeats(self, kept: torch.Tensor | None = None) -> None:
        super().delete_repeats(self.stopped)


class CapturedPasses:
    """Decoding with one graph per pass and one for its end; passes are skipped once all rows have stopped.

    Args:
        start: tensors of fixed shapes -> `FixedRows` before its first pass.
        finish: `FixedRows` -> results, which are overwritten like those of `CapturedGraph`.
    """

    def __init__(self, start: Callable, finish: Callable, inputs: Sequence[torch.Tensor], pool, stream):
        run_passes(start(*inputs), finish)  # first calls must not be recorded

        def first(*tensors):
            self.decoding = start(*tensors)
            self.decoding.one_pass(0)

        self.first = CapturedGraph(first, inputs, pool, stream)
        others = [partial(self.one_pass, i) for i in range(1, self.decoding.options.num_iterations)]
        self.others = [CapturedGraph(step, (), pool, stream, 0) for step in others]
        self.last = CapturedGraph(lambda: finish(self.decoding), (), pool, stream, 0)

    def one_pass(self, iteration: int) -> None:
        self.decoding.one_pass(iteration)

    def __call__(self, *inputs: torch.Tensor):
        self.first(*inputs)
        for graph in self.others:
            if bool(self.decoding.stopped.all()):
                break
            graph()
        return self.last()


def run_passes(decoding: FixedRows, finish: Callable):
    """The same as `CapturedPasses` without graphs."""
    for iteration in range(decoding.options.num_iterations):
        decoding.one_pass(iteration)
        if bool(decoding.stopped.all()):
            break
    return finish(decoding)


class GraphCache:
    """Functions by key, as CUDA graphs where possible; the least recently used graphs are dropped.

    Args:
        device: graphs are captured on CUDA devices; on others, functions are called directly.
        max_graphs: number of graphs to keep.
    """

    def __init__(self, device: torch.device, max_graphs: int = MAX_GRAPHS):
        if max_graphs < 1:
            raise ValueError(f"max_graphs={max_graphs} must be at least 1")
        self.max_graphs = max_graphs
        self.captures = device.type == "cuda"
        self.graphs: OrderedDict[Hashable, CapturedGraph | CapturedPasses] = OrderedDict()
        if self.captures:
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream(device)

    def __call__(self, key: Hashable, function: Callable, *inputs: torch.Tensor, capture: Callable | None = None):
        """`function(*inputs)`, from the graph of `key`; the result is valid until the next call.

        `capture(inputs, pool, stream)` makes the graph. Default: a `CapturedGraph` of `function`.
        """
        if not self.captures:
            return function(*inputs)
        graph = self.graphs.get(key)
        if graph is None:
            try:
                graph = (capture or partial(CapturedGraph, function))(inputs, self.pool, self.stream)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"CUDA graphs cannot be used, decoding continues without them: {reason}", stacklevel=2)
                self.captures = False
                self.graphs.clear()
                return function(*inputs)
            self.graphs[key] = graph
            if len(self.graphs) > self.max_graphs:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        return graph(*inputs)


class StaticShapeJMNat(JMNatGenerationMixin):
    """A JM-NAT model with the same `generate`, in fixed shapes and CUDA graphs.

    Decoding waits for the GPU twice, for the longest candidate length and for the longest text; with `early_stop` or
    `confidence_threshold` also before each pass. `output_history`, a reranker, an initial canvas, drafts for a
    streamer and decoders that copy the source run without graphs.

    Args:
        model: on its final device and in its final dtype; its weights may change in place, but must not be moved.
        max_graphs: number of shapes to keep.

    Raises:
        ValueError: the model is not a JM-NAT or is in training mode, or `max_graphs` is below 1.
    """

    main_input_name = "input_ids"

    def __init__(self, model: JMNatForConditionalGeneration, max_graphs: int = MAX_GRAPHS):
        if not isinstance(model, JMNatForConditionalGeneration) or model.config.model_type != JMNatConfig.model_type:
            raise ValueError(f"model is a {type(model).__name__} but must be a JMNatForConditionalGeneration")
        if model.training:
            raise ValueError("model is in training mode: call eval() first, because graphs would record its dropout")
        self.model = model
        self.config = model.config
        self.generation_config_class = model.generation_config_class
        self.graphs = GraphCache(model.device, max_graphs)

    @property
    def generation_config(self) -> Any:  # type: ignore[override]
        return self.model.generation_config

    @generation_config.setter
    def generation_config(self, generation_config: Any) -> None:
        self.model.generation_config = generation_config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def can_generate(self) -> bool:
        return True

    def get_encoder(self):
        return self.encode

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> JMNatEncoderOutput:
        """Source ids and mask (B, S) -> states, with S rounded up, and length logits of B sentences."""
        mask = token_mask(attention_mask, input_ids, None, self.config.pad_token_id)
        rows, length = input_ids.shape
        shape = (coarse_bucket(rows), length_bucket(length, self.config.max_position_embeddings))
        with torch.inference_mode(False), torch.no_grad():
            states, length_logits = self.graphs(
                ("encode", shape),
                self._encode,
                pad_to(input_ids, shape, self.config.pad_token_id),
                pad_to(mask, shape, False),
            )
            return JMNatEncoderOutput(states[:rows].clone(), length_logits=length_logits[:rows].clone())

    def _encode(self, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model.model.encoder(input_ids, mask)
        return output.last_hidden_state, output.length_logits

    def encode_for_generation(self, input_ids=None, attention_mask=None, inputs_embeds=None, encoder_outputs=None):
        """As the model's method; the source mask is padded to the width of the states."""
        if encoder_outputs is None and input_ids is not None:
            encoder_outputs = self.encode(input_ids, attention_mask)
        if input_ids is None and attention_mask is not None and encoder_outputs is not None:
            rows, length = as_encoder_output(encoder_outputs).last_hidden_state.shape[:2]
            if len(attention_mask) == rows and attention_mask.shape[1] < length:  # states of `encode` may be wider
                attention_mask = pad_to(attention_mask, (rows, length), 0)
        states, mask, length_log_probs = self.model.encode_for_generation(
            input_ids, attention_mask, inputs_embeds, encoder_outputs
        )
        if len(mask) != len(states) or mask.shape[1] > states.shape[1]:
            shapes = tuple(mask.shape), tuple(states.shape)
            raise ValueError(f"input_ids has shape {shapes[0]}, which does not fit {shapes[1]} of encoder_outputs")
        return states, pad_to(mask, states.shape[:2], False), length_log_probs

    def _decode(  # type: ignore[override]
        self,
        options: JMNatOptions,
        lengths: torch.Tensor,
        states: torch.Tensor,
        source_mask: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        reranker=None,
        canvas: torch.Tensor | None = None,
        after_pass=None,
    ) -> tuple[JMNatGenerateOutput, torch.Tensor]:
        """As the model's method, with a graph for each (B, S, T), rounded up, and each set of options."""
        others = reranker is not None or canvas is not None or after_pass is not None
        if others or self.config.decoder_input != "mask" or options.output_history:
            source_mask = source_mask if input_ids is None else source_mask[:, : input_ids.shape[1]]
            states = states[:, : source_mask.shape[1]]
            by_passes = {"canvas": canvas, "after_pass": after_pass}
            return self.model._decode(options, lengths, states, source_mask, input_ids, reranker, **by_passes)
        num_positions = length_bucket(int(lengths.max()), self.config.max_target_length)
        rows, num_rows = lengths.shape[0], coarse_bucket(lengths.shape[0])
        sources = (num_rows, length_bucket(states.shape[1], self.config.max_position_embeddings))
        inputs = [
            pad_to(lengths, (num_rows,), SHORTEST_TARGET),
            pad_to(states, sources),
            pad_to(source_mask, sources, False),
        ]
        rightful = self.model._rightful_repeats(options, source_mask, input_ids)
        if rightful is not None:
            inputs.append(pad_to(rightful, (num_rows,), False))
        if rows_may_stop(options):
            unused = torch.zeros(rows, dtype=torch.bool, device=lengths.device)
            inputs.insert(0, pad_to(unused, (num_rows,), True))  # rows that pad the batch count as stopped
        key = ("decode", sources, num_positions, repr(options))
        with torch.inference_mode(False), torch.no_grad():
            output, ends = self._run(key, options, num_positions, inputs)
            rows_of = dict.fromkeys(("num_passes", "candidate_lengths", "best_candidates"), rows)
            returned = rows * options.num_return_sequences
            kept = {name: value[: rows_of.get(name, returned)].clone() for name, value in output.items()}
            return JMNatGenerateOutput(**kept), ends[:returned].clone()

    def _run(self, key: Hashable, options: JMNatOptions, num_positions: int, inputs: Sequence[torch.Tensor]):
        """All passes, in one graph; or in one graph each if a rule may make some of them unnecessary."""

        def start(unused, lengths, states, source_mask, rightful=None):
            suppressed = self.model._suppressed_tokens(options, lengths.device)
            shared = (lengths, states, source_mask, suppressed, num_positions, rightful)
            return FixedRows(self.model, options, *shared, unused=unused)

        def finish(decoding):
            decoding.finish(0)  # prunes candidates only if all rows had stopped before that was due
            return choose_candidates(decoding)

        def decode(lengths, states, source_mask, rightful=None):
            fixed = {"num_positions": num_positions, "rightful": rightful}
            return self.model._decode(options, lengths, states, source_mask, **fixed)

        if not rows_may_stop(options):
            return self.graphs(key, decode, *inputs)
        capture = partial(CapturedPasses, start, finish)
        return self.graphs(key, lambda *tensors: run_passes(start(*tensors), finish), *inputs, capture=capture)


def rows_may_stop(options: JMNatOptions) -> bool:
    """Whether a rule may make the last passes unnecessary; pruned candidates alone stay in the batch to the end."""
    return options.early_stop or options.confidence_threshold is not None
