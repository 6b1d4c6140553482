"""The engine on small tables: exact both ways, and every fault named before data is read."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ba_jax.checkpoints import arrays as checkpoint
from ba_jax.convert import engine
from ba_jax.convert.engine import ConversionError, TensorInfo, WeightRow, make_plan, row
from ba_jax.tree import flatten, unflatten
from tests.unit.convert.helpers import assert_refused

LAYERS = (("layer", 3),)
ROWS = [
    row("embed.weight", "params/llm/embedding"),
    WeightRow(
        "layers.{layer}.qkv.weight",
        tuple(f"params/llm/layers/{name}/kernel" for name in ("q", "k", "v")),
        "o i -> i o",
        (0, (4, 2, 2)),
        LAYERS,
    ),
    WeightRow(
        "layers.{layer}.qkv.bias",
        ("params/llm/layers/q/bias", "", "params/llm/layers/v/bias"),
        split=(0, (4, 2, 2)),
        stack=LAYERS,
    ),
    row(
        "unet.{stage}.{layer}.conv",
        "params/unet/conv",
        "o i k -> k i o",
        stack=(("stage", 2), *LAYERS),
    ),
    WeightRow("head.weight", ("params/head/a", "params/head/b"), "o i -> i o", (1, (5, 3))),
    row("count", "codebook/head/count"),
]
SHAPES = {
    "params/llm/embedding": (11, 4),
    "params/llm/layers/q/kernel": (3, 6, 4),
    "params/llm/layers/k/kernel": (3, 6, 2),
    "params/llm/layers/v/kernel": (3, 6, 2),
    "params/llm/layers/q/bias": (3, 4),
    "params/llm/layers/v/bias": (3, 2),
    "params/unet/conv": (2, 3, 5, 2, 7),
    "params/head/a": (5, 6),
    "params/head/b": (3, 6),
    "codebook/head/count": (),
}


def abstract(shapes=SHAPES, dtypes=()):
    dtypes = dict(dtypes)
    return unflatten(
        {p: jax.ShapeDtypeStruct(s, dtypes.get(p, jnp.float32)) for p, s in shapes.items()}
    )


@dataclasses.dataclass
class Arrays:
    """A `TensorSource` in memory."""

    arrays: dict
    label: str = "/somewhere/model"
    reads: int = 0

    @property
    def tensors(self):
        return {name: TensorInfo(a.shape, a.dtype) for name, a in self.arrays.items()}

    def read(self, name, start=0, stop=None):
        self.reads += 1
        array = self.arrays[name]
        return array[start:stop].copy() if array.ndim else array


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    result = {"embed.weight": rng.standard_normal((11, 4))}
    for i in range(3):
        result[f"layers.{i}.qkv.weight"] = rng.standard_normal((8, 6))
        result[f"layers.{i}.qkv.bias"] = rng.standard_normal(8)
        result[f"layers.{i}.qkv.bias"][4:6] = 0
        for j in range(2):
            result[f"unet.{j}.{i}.conv"] = rng.standard_normal((7, 2, 5))
    result["head.weight"] = rng.standard_normal((6, 8))
    result["count"] = np.array(3.0)
    return {name: np.asarray(a).astype(dtype) for name, a in result.items()}


def refused(source, *words, rows=ROWS, shapes=None, **kwargs):
    shapes = abstract() if shapes is None else shapes
    message = assert_refused(lambda: make_plan(rows, source, shapes, **kwargs), *words)
    assert source.reads == 0, "data was read before the plan was checked"
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [16, 64 << 20])
def test_round_trip_is_exact(tmp_path, monkeypatch, dtype, chunk_bytes):
    monkeypatch.setattr(checkpoint, "MAX_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", chunk_bytes)
    source = Arrays(arrays(dtype))
    plan = make_plan(ROWS, source, abstract())
    engine.check_zeros(plan)
    moved = []
    tree = engine.lazy_variables(plan, moved.append)
    checkpoint.save_streamed(tmp_path / "weights", tree)
    # All but the part that is not stored.
    assert sum(moved) == plan.nbytes - 3 * 2 * np.dtype(dtype).itemsize

    variables = checkpoint.load_variables(tmp_path / "weights", abstract())
    kernel = variables["params"]["llm"]["layers"]["k"]["kernel"]
    assert kernel.dtype == dtype
    for i in range(3):
        packed = source.arrays[f"layers.{i}.qkv.weight"]
        np.testing.assert_array_equal(np.asarray(kernel[i]), packed[4:6].T)
        conv = np.asarray(variables["params"]["unet"]["conv"][1, i])
        np.testing.assert_array_equal(conv, source.arrays[f"unet.1.{i}.conv"].transpose(2, 1, 0))
    head = source.arrays["head.weight"]
    np.testing.assert_array_equal(np.asarray(variables["params"]["head"]["b"]), head[:, 5:].T)

    reader = checkpoint.Reader(tmp_path / "weights")
    for name, parts in engine.expand(ROWS, abstract()).items():
        pieces = list(engine.source_rows(parts, reader))
        got = np.concatenate([piece.reshape(-1) for piece in pieces])
        expected = source.arrays[name]
        assert got.dtype == expected.dtype and parts[0].source_shape == expected.shape
        assert got.tobytes() == expected.tobytes(), name


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_any_permutation_and_split_can_be_undone(data):
    rank = data.draw(st.integers(1, 4))
    names = "abcd"[:rank]
    right = "".join(data.draw(st.permutations(names)))
    axis = data.draw(st.integers(0, rank - 1))
    sizes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    shape[axis] = sum(sizes)
    array = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)
    array = array.view(ml_dtypes.bfloat16)
    targets = tuple(f"params/llm/{i}" for i in range(len(sizes)))
    table = [WeightRow("x", targets, f"{' '.join(names)} -> {' '.join(right)}", (axis, sizes))]
    split = np.split(array.view(np.uint16), np.cumsum(sizes)[:-1], axis)
    expected = [part.transpose([names.index(n) for n in right]) for part in split]
    shapes = {t: part.shape for t, part in zip(targets, expected, strict=True)}
    plan = make_plan(table, Arrays({"x": array}), abstract(shapes))

    variables = {}
    for path, lazy in flatten(engine.lazy_variables(plan)).items():
        variables[path] = np.empty(lazy.shape, lazy.dtype)
        for start, piece in lazy.pieces():
            region = zip(start, piece.shape, strict=True)
            variables[path][tuple(slice(o, o + n) for o, n in region)] = piece
    for target, part in zip(targets, expected, strict=True):
        np.testing.assert_array_equal(variables[target].view(np.uint16), part)

    class Reader:
        directory = "x"

        def dtype(self, path):
            return variables[path].dtype

        def read(self, path, index):
            return variables[path][index]

    rows = engine.source_rows(plan.placements["x"], Reader())
    again = np.concatenate([piece.reshape(-1) for piece in rows])
    assert again.tobytes() == array.tobytes()


def test_cast_of_parameters_only(tmp_path):
    plan = make_plan(ROWS, Arrays(arrays(np.float16)), abstract(), dtype=jnp.bfloat16)
    assert plan.dtypes["params/llm/embedding"] == jnp.bfloat16
    assert plan.dtypes["codebook/head/count"] == np.float16
    checkpoint.save_streamed(tmp_path / "weights", engine.lazy_variables(plan))
    got = checkpoint.Reader(tmp_path / "weights").read("params/llm/embedding")
    expected = plan.source.arrays["embed.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.view(np.uint16), expected.view(np.uint16))


def test_every_fault_is_listed_at_once():
    faulty = arrays()
    del faulty["embed.weight"]
    del faulty["layers.1.qkv.bias"]
    faulty["layers.2.qkv.weight"] = np.zeros((9, 6), np.float32)
    faulty["head.weight"] = np.zeros((6, 8), np.int32)
    faulty["rotary.inv_freq"] = np.zeros(4, np.float32)
    faulty["unet.1.3.conv"] = np.zeros((7, 2, 5), np.float32)
    message = refused(
        Arrays(faulty),
        "/somewhere/model: 6 problems",
        "missing tensor embed.weight (11, 4)",
        "missing tensor layers.1.qkv.bias (8,)",
        "misshapen tensor layers.2.qkv.weight: expected (8, 6), got (9, 6)",
        "wrong dtype of head.weight: expected float32 or float16 or bfloat16, got int32",
        "unknown tensor rotary.inv_freq (4,)",
        "unknown tensor unet.1.3.conv (7, 2, 5)",
    )
    assert len(message.splitlines()) == 7


def test_many_faults_are_counted():
    faulty = arrays() | {f"extra.{i}": np.zeros(1, np.float32) for i in range(300)}
    message = refused(Arrays(faulty), "300 problems", "extra.0")
    assert len(message.splitlines()) == engine.MAX_PROBLEMS + 2


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float64, ml_dtypes.float8_e4m3fn])
def test_wrong_dtypes(dtype):
    faulty = {**arrays(), "embed.weight": np.zeros((11, 4), dtype)}
    refused(
        Arrays(faulty),
        f"wrong dtype of embed.weight: expected float32 or float16 or "
        f"bfloat16, got {np.dtype(dtype).name}",
    )


def test_integer_variables_take_integers_alone():
    shapes = abstract(dtypes={"codebook/head/count": jnp.int32})
    refused(Arrays(arrays()), "wrong dtype of count: expected int32, got float32", shapes=shapes)
    fitting = {**arrays(), "count": np.array(3, np.int32)}
    plan = make_plan(ROWS, Arrays(fitting), shapes, dtype=jnp.bfloat16)
    assert plan.dtypes["codebook/head/count"] == np.int32


def test_left_out_prefixes():
    vision = {"visual.conv": np.zeros((2, 2), np.float32), "visual2.x": np.zeros(1, np.float32)}
    source = Arrays({**arrays(), **vision})
    refused(source, "unknown tensor visual2.x", left_out=("visual.",))
    plan = make_plan(ROWS, source, abstract(), left_out=("visual.", "visual2."))
    assert plan.left_out == {"visual.conv": "visual.", "visual2.x": "visual2."}


def test_mixed_dtypes_in_one_variable():
    mixed = arrays()
    mixed["layers.2.qkv.weight"] = mixed["layers.2.qkv.weight"].astype(np.float16)
    refused(
        Arrays(mixed),
        "layers.0.qkv.weight is float32 but layers.2.qkv.weight is float16",
        "slices of params/llm/layers/q/kernel",
        "--dtype",
    )
    plan = make_plan(ROWS, Arrays(mixed), abstract(), dtype=jnp.float32)
    assert plan.dtypes["params/llm/layers/q/kernel"] == np.float32


def test_parts_that_must_be_zero():
    source = Arrays(arrays())
    source.arrays["layers.1.qkv.bias"][5] = 1e-3
    plan = make_plan(ROWS, source, abstract())
    with pytest.raises(ConversionError, match=r"layers.1.qkv.bias\[4:6\] is not zero"):
        engine.check_zeros(plan)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        (
            [row("a", "params/x/w"), row("b", "params/x/w")],
            "duplicate target params/x/w[] (from b)",
        ),
        ([row("a", "params/x/w"), row("a", "params/x/v")], "duplicate source a"),
        ([row("a", "params/x/w")], "no row fills params/x/v (4, 2)"),
        ([row("a", "params/x/z")], "params/x/z is not a variable"),
        ([row("a", "params/x/w", "o i -> o")], "expected a permutation of named axes"),
        ([row("a", "params/x/w", "o i")], "expected a permutation of named axes"),
        ([row("a", "params/x/w", "o i k -> k i o")], "does not fit a target of (4, 2)"),
        ([row("a.{n}", "params/x/w", stack=(("n", 3),))], "expected leading axes (3,)"),
        ([row("a.{m}", "params/x/w", stack=(("n", 4),))], "does not give the field 'm'"),
        ([WeightRow("a", ("params/x/w", "params/x/v"), "", (0, (4, 3)))], "targets have (4, 4)"),
        ([WeightRow("a", ("params/x/w",), "", (0, (4, 4)))], "1 targets for 2 parts"),
    ],
)
def test_faulty_tables(table, word):
    shapes = abstract({"params/x/w": (4, 2), "params/x/v": (4, 2)})
    refused(Arrays({}), "conversion tables", word, rows=table, shapes=shapes)
