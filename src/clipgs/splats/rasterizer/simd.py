"""Eight float32 numbers as one value inside numba functions.

The rasteriser's loops are seven or eight pixels long, too short for a compiler's vectoriser. Here eight lanes are a
type: `+ - * /`, comparisons, `&` and the functions below become single LLVM vector instructions, which LLVM maps onto
the processor's (AVX-512, AVX2, NEON). A float in an operation with a vector is repeated in all lanes. Values of these
types exist only inside compiled functions.

Numba's cache looks only at the file of a compiled function: after a change here, touch the files that import it, or
they keep the old code.
"""

import operator

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

LANES = 8
_F32 = ir.VectorType(ir.FloatType(), LANES)
_I32 = ir.VectorType(ir.IntType(32), LANES)
_I1 = ir.VectorType(ir.IntType(1), LANES)
# a * b + c may become one instruction; nothing else may be reordered, so results repeat bit for bit.
_FLAGS = ("contract",)


class Floats(types.Type):
    """Eight float32."""

    def __init__(self):
        super().__init__(name="f32x8")


class Mask(types.Type):
    """Eight booleans."""

    def __init__(self):
        super().__init__(name="i1x8")


f32x8 = Floats()
mask8 = Mask()


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _F32)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _I1)


@lower_cast(types.Float, Floats)
def _repeat(context, builder, from_type, to_type, value):
    value = context.cast(builder, value, from_type, types.float32)
    one = builder.insert_element(ir.Constant(_F32, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(_I32, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_F32, ir.Undefined), zeros)


def _define(operation, result, emit, over=(Floats, types.Float)):
    """Teach numba one binary operator where at least one side is a vector."""
    operand = f32x8 if Floats in over else mask8

    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and any(a is operand for a in args) and all(isinstance(a, over) for a in args):
                return signature(result, operand, operand)
            return None

    infer_global(operation)(Template)

    @lower_builtin(operation, type(operand), type(operand))
    def lower(context, builder, sig, args):
        return emit(builder, *args)


_define(operator.add, f32x8, lambda b, x, y: b.fadd(x, y, flags=_FLAGS))
_define(operator.sub, f32x8, lambda b, x, y: b.fsub(x, y, flags=_FLAGS))
_define(operator.mul, f32x8, lambda b, x, y: b.fmul(x, y, flags=_FLAGS))
_define(operator.truediv, f32x8, lambda b, x, y: b.fdiv(x, y, flags=_FLAGS))
_define(operator.ge, mask8, lambda b, x, y: b.fcmp_ordered(">=", x, y))
_define(operator.gt, mask8, lambda b, x, y: b.fcmp_ordered(">", x, y))
_define(operator.le, mask8, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_define(operator.lt, mask8, lambda b, x, y: b.fcmp_ordered("<", x, y))
_define(operator.and_, mask8, lambda b, x, y: b.and_(x, y), over=(Mask,))


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _F32.as_pointer())


def _is_float32(array_type):
    return isinstance(array_type, types.Array) and array_type.dtype == types.float32 and array_type.layout == "C"


@intrinsic
def load(typing, array, index):
    """Eight numbers of a contiguous float32 array from `index` on."""
    if not _is_float32(array):
        return None

    def emit(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], *args), align=4)

    return f32x8(array, types.int64), emit


@intrinsic
def store(typing, array, index, value):
    """Write eight numbers to a contiguous float32 array from `index` on."""
    if not _is_float32(array):
        return None

    def emit(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, f32x8), emit


@intrinsic
def repeat(typing, value):
    """One number in all lanes."""
    return f32x8(types.float32), lambda context, builder, sig, args: _repeat(
        context, builder, types.float32, f32x8, args[0]
    )


@intrinsic
def ramp(typing):
    """0, 1, 2, ... 7."""
    return f32x8(), lambda context, builder, sig, args: ir.Constant(_F32, [float(i) for i in range(LANES)])


@intrinsic
def where(typing, mask, yes, no):
    """`yes` in the lanes where the mask is set, else `no`."""
    return f32x8(mask8, f32x8, f32x8), lambda context, builder, sig, args: builder.select(*args)


def _extreme(comparison):
    @intrinsic
    def function(typing, x, y):
        def emit(context, builder, sig, args):
            return builder.select(builder.fcmp_ordered(comparison, *args), *args)

        return f32x8(f32x8, f32x8), emit

    return function


# The smaller and the larger of two in each lane; the second where the first is not a number.
least, most = _extreme("<"), _extreme(">")


def _unary(name):
    @intrinsic
    def function(typing, x):
        def emit(context, builder, sig, args):
            kind = ir.FunctionType(_F32, [_F32])
            declared = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
            return builder.call(declared, args)

        return f32x8(f32x8), emit

    return function


root, magnitude = _unary("sqrt"), _unary("fabs")


@intrinsic
def total(typing, x):
    """The sum of the eight lanes, added as a tree: always in the same order."""

    def emit(context, builder, sig, args):
        (x,) = args
        width = LANES
        while width > 1:
            half = width // 2
            low = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(half)))
            high = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(half, width)))
            nothing = ir.Constant(x.type, ir.Undefined)
            x = builder.fadd(builder.shuffle_vector(x, nothing, low), builder.shuffle_vector(x, nothing, high))
            width = half
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return types.float32(f32x8), emit


@intrinsic
def any_lane(typing, mask):
    """True if the mask is set in any lane."""

    def emit(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask8), emit


@intrinsic
def _shift_exponent(typing, mantissa, rounded):
    """mantissa * 2^n, where `rounded` is n + 1.5 * 2^23, whose lowest bits are the integer n."""

    def emit(context, builder, sig, args):
        bits = builder.bitcast(args[0], _I32)
        n = builder.shl(builder.bitcast(args[1], _I32), ir.Constant(_I32, [23] * LANES))
        return builder.bitcast(builder.add(bits, n), _F32)

    return f32x8(f32x8, f32x8), emit


@intrinsic
def _exponent(typing, x):
    """floor(log2 x) of positive normal numbers, as floats."""

    def emit(context, builder, sig, args):
        bits = builder.lshr(builder.bitcast(args[0], _I32), ir.Constant(_I32, [23] * LANES))
        return builder.sitofp(builder.sub(bits, ir.Constant(_I32, [127] * LANES)), _F32)

    return f32x8(f32x8), emit


@intrinsic
def _mantissa(typing, x):
    """x / 2^floor(log2 x), in [1, 2), of positive normal numbers."""

    def emit(context, builder, sig, args):
        bits = builder.and_(builder.bitcast(args[0], _I32), ir.Constant(_I32, [0x007FFFFF] * LANES))
        return builder.bitcast(builder.or_(bits, ir.Constant(_I32, [0x3F800000] * LANES)), _F32)

    return f32x8(f32x8), emit


@njit(forceinline=True)
def exp2(x):
    """2^x for |x| < 126, with a relative error below 1.5e-7: a minimax polynomial of the fraction in [-1/2, 1/2], and
    the integer part added to the exponent's bits."""
    rounded = x + 12582912.0  # 1.5 * 2^23: adding it rounds to an integer
    f = x - (rounded - 12582912.0)
    p = 0.0013276471770140472 * f + 0.009675541332683803
    p = p * f + 0.05550713274185879
    p = p * f + 0.2402211972388411
    p = p * f + 0.693146967064339
    p = p * f + 1.0000000716546709
    return _shift_exponent(p, rounded)


@njit(forceinline=True)
def exp(x):
    """e^x, for x clamped to +-80."""
    return exp2(least(most(x, -80.0), 80.0) * 1.4426950408889634)


@njit(forceinline=True)
def log2_above(x):
    """An upper bound of log2 of positive normal numbers, at most 0.002 too large: a cubic of the mantissa."""
    m = _mantissa(x)
    return _exponent(x) + (((0.15544865 * m - 1.03927585) * m + 3.02951204) * m - 2.14416)
