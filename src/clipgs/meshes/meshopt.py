"""Decodes buffer views of glTF that are compressed by meshoptimizer.

Method: KHR_meshopt_compression, appendices A (bitstream) and B (filters); EXT_meshopt_compression is the same without
version 1 of the attributes and without the filter COLOR.
"""

from typing import Any

import numba
import numpy as np

from clipgs.core.errors import ObjectError

_STRIDES = {"TRIANGLES": (2, 4), "INDICES": (2, 4), "ATTRIBUTES": range(4, 257, 4)}
_FILTER_STRIDES = {
    "NONE": range(257),
    "OCTAHEDRAL": (4, 8),
    "QUATERNION": (8,),
    "EXPONENTIAL": range(4, 257, 4),
    "COLOR": (4, 8),
}
_HEADERS = {"TRIANGLES": (0xE1,), "INDICES": (0xD1,), "ATTRIBUTES": (0xA0, 0xA1)}
# Bits of a delta by its group's two header bits: for version 0, then for the control modes 0 and 1 of version 1.
_BITS = np.array([[0, 2, 4, 8], [0, 1, 2, 4], [1, 2, 4, 8]])
_DAMAGED = -1


def decode(data: bytes, described: dict[str, Any], max_count: int) -> bytes:
    """The plain bytes of a view, `count` elements of `byteStride` bytes.

    `described` is the extension's object, without regard to where its data is.

    Raises:
        ObjectError: the data is damaged, the object is not as the extension requires, or has more than `max_count`
            elements.
    """
    mode, filter_name = described.get("mode"), described.get("filter", "NONE")
    count, stride = described["count"], described["byteStride"]
    if mode not in _STRIDES or filter_name not in _FILTER_STRIDES or (mode != "ATTRIBUTES" and filter_name != "NONE"):
        raise ObjectError(f"its meshopt data has the unknown mode {mode!r} and filter {filter_name!r}")
    if stride not in _STRIDES[mode] or stride not in _FILTER_STRIDES[filter_name]:
        raise ObjectError(f"its meshopt data has {stride} bytes an element, which {mode} and {filter_name} do not have")
    if not isinstance(count, int) or count < 0 or (mode == "TRIANGLES" and count % 3):
        raise ObjectError(f"its meshopt data has {count} elements")
    if count > max_count:
        raise ObjectError(f"its meshopt data claims {count} elements, more than the limit of {max_count}")
    source = np.frombuffer(data, np.uint8)
    # The fewest bytes that each mode needs, before memory is taken: a stream cannot claim more than a factor of 1,024.
    least = {"TRIANGLES": 17 + count // 3, "INDICES": 5 + count, "ATTRIBUTES": 25 + count * stride // 1024}[mode]
    if len(source) < least or source[0] not in _HEADERS[mode]:
        raise ObjectError(f"its meshopt data is damaged: {len(source)} bytes do not hold {count} elements of {mode}")
    if mode == "ATTRIBUTES":
        values = np.zeros((count, stride), np.uint8)
        end = _attributes(source, values)
    else:
        indices = np.zeros(count, np.uint32)
        end = (_triangles if mode == "TRIANGLES" else _indices)(source, indices)
        values = indices.astype("<u2" if stride == 2 else "<u4")
    if end == _DAMAGED:
        raise ObjectError(f"its meshopt data of {count} {mode} is damaged")
    return _filtered(values, filter_name).tobytes()


@numba.njit(cache=True, nogil=True)
def _attributes(
    source: np.ndarray,  # [B] uint8
    out: np.ndarray,  # [N, stride] uint8
) -> int:
    count, stride = out.shape
    version = source[0] & 1
    tail = stride + stride // 4 if version else stride
    end = len(source) - max(tail, 24 if version else 32)
    previous = source[len(source) - tail : len(source) - tail + stride].copy()
    channels = source[len(source) - stride // 4 :]
    most = min((8192 // stride) & ~15, 256)
    planes = np.zeros((4, 256), np.uint8)
    at = 1
    for start in range(0, count, most):
        size = min(most, count - start)
        groups = (size + 15) // 16
        controls = at
        if version:
            at += stride // 4
        if at > end:
            return _DAMAGED
        for channel in range(stride // 4):
            for byte in range(4):
                plane = planes[byte]
                bits_row = 0
                if version:
                    control = (source[controls + channel] >> (2 * byte)) & 3
                    if control == 2:
                        plane[:] = 0
                        continue
                    if control == 3:
                        if at + size > end:
                            return _DAMAGED
                        plane[:size] = source[at : at + size]
                        at += size
                        continue
                    bits_row = 1 + control
                headers = at
                at += (groups + 3) // 4
                if at > end:
                    return _DAMAGED
                for group in range(groups):
                    header = (source[headers + group // 4] >> (2 * (group % 4))) & 3
                    bits = _BITS[bits_row, header]
                    values = plane[16 * group : 16 * group + 16]
                    if bits == 0:
                        values[:] = 0
                        continue
                    packed = at
                    at += 2 * bits
                    if at > end:
                        return _DAMAGED
                    if bits == 8:
                        values[:] = source[packed : packed + 16]
                        continue
                    sentinel, per_byte = (1 << bits) - 1, 8 // bits
                    for i in range(16):
                        place = i % per_byte  # the first is the lowest bit if there is one bit, else the highest
                        shift = place if bits == 1 else 8 - bits * (place + 1)
                        value = (source[packed + i // per_byte] >> shift) & sentinel
                        if value == sentinel:
                            if at >= end:
                                return _DAMAGED
                            value = source[at]
                            at += 1
                        values[i] = value
            first = 4 * channel
            kind = channels[channel] if version else 0
            if kind == 0:
                for byte in range(4):
                    value = np.int64(previous[first + byte])
                    for i in range(size):
                        delta = np.int64(planes[byte, i])
                        value += -(delta >> 1) - 1 if delta & 1 else delta >> 1
                        out[start + i, first + byte] = value & 0xFF
                    previous[first + byte] = value & 0xFF
            elif kind == 1:
                for half in range(0, 4, 2):
                    value = np.int64(previous[first + half]) | np.int64(previous[first + half + 1]) << 8
                    for i in range(size):
                        delta = np.int64(planes[half, i]) | np.int64(planes[half + 1, i]) << 8
                        value += -(delta >> 1) - 1 if delta & 1 else delta >> 1
                        out[start + i, first + half] = value & 0xFF
                        out[start + i, first + half + 1] = (value >> 8) & 0xFF
                    previous[first + half] = value & 0xFF
                    previous[first + half + 1] = (value >> 8) & 0xFF
            elif kind & 15 == 2:
                turn = np.int64(kind >> 4)
                word = np.int64(0)
                for byte in range(4):
                    word |= np.int64(previous[first + byte]) << (8 * byte)
                for i in range(size):
                    change = np.int64(0)
                    for byte in range(4):
                        change |= np.int64(planes[byte, i]) << (8 * byte)
                    word ^= (change >> turn | change << (32 - turn)) & 0xFFFFFFFF  # the writer turned it left
                    for byte in range(4):
                        out[start + i, first + byte] = (word >> (8 * byte)) & 0xFF
                for byte in range(4):
                    previous[first + byte] = (word >> (8 * byte)) & 0xFF
            else:
                return _DAMAGED
    return at if at == end else _DAMAGED


@numba.njit(cache=True, nogil=True)
def _varint(source: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it, which is `_DAMAGED` if it does not end before `end`."""
    value = np.int64(0)
    for i in range(5):
        if at >= end:
            break
        byte = np.int64(source[at])
        at += 1
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return int(value & 0xFFFFFFFF), at
    return 0, _DAMAGED


@numba.njit(cache=True, nogil=True)
def _triangles(
    source: np.ndarray,  # [B] uint8
    out: np.ndarray,  # [3 * T] uint32
) -> int:
    count = len(out) // 3
    end = len(source) - 16
    table = source[end:]
    edges = np.full((16, 2), -1, np.int64)  # rings: entry 0 is the last one before the head
    vertices = np.full(16, -1, np.int64)
    edge_head, vertex_head = 0, 0
    fresh, last = 0, 0
    at = 1 + count
    corner = np.zeros(3, np.int64)
    for triangle in range(count):
        code = np.int64(source[1 + triangle])  # unsigned numbers and signed ones would become floats
        high, low = code >> 4, code & 15
        if high < 15:
            entry = (edge_head - 1 - high) & 15
            corner[0], corner[1] = edges[entry]
            new = True
            if low == 0:
                corner[2] = fresh
                fresh = (fresh + 1) & 0xFFFFFFFF
            elif low < 13:
                corner[2] = vertices[(vertex_head - 1 - low) & 15]
                new = False
            else:
                if low == 15:
                    word, at = _varint(source, at, end)
                    if at == _DAMAGED:
                        return _DAMAGED
                    last += -(word >> 1) - 1 if word & 1 else word >> 1
                else:
                    last += -1 if low == 13 else 1
                last &= 0xFFFFFFFF
                corner[2] = last
            if new:
                vertices[vertex_head & 15] = corner[2]
                vertex_head += 1
        else:
            if low < 14:
                pair = np.int64(table[low])
                explicit = False
            else:
                if at >= end:
                    return _DAMAGED
                pair = np.int64(source[at])
                at += 1
                explicit = True
                if pair == 0:
                    fresh = 0
            for i in range(3):
                # How the corner is stored: 0 as the next new vertex, 15 in the data, else among the last vertices.
                stored = pair >> 4 if i == 1 else pair & 15
                if i == 0:
                    stored = np.int64(15 if low == 15 else 0)
                if stored == 0:
                    corner[i] = fresh
                    fresh = (fresh + 1) & 0xFFFFFFFF
                elif stored < 15:
                    corner[i] = vertices[(vertex_head - stored) & 15]
                else:
                    if not explicit:
                        return _DAMAGED
                    word, at = _varint(source, at, end)
                    if at == _DAMAGED:
                        return _DAMAGED
                    last += -(word >> 1) - 1 if word & 1 else word >> 1
                    last &= 0xFFFFFFFF
                    corner[i] = last
            for i in range(3):
                stored = pair >> 4 if i == 1 else pair & 15
                if i == 0 or stored == 0 or stored == 15:
                    vertices[vertex_head & 15] = corner[i]
                    vertex_head += 1
            edges[edge_head & 15] = corner[1], corner[0]
            edge_head += 1
        for i in range(3):
            if corner[i] < 0:  # an entry that nothing was written to
                return _DAMAGED
            out[3 * triangle + i] = corner[i]
        edges[edge_head & 15] = corner[2], corner[1]
        edges[(edge_head + 1) & 15] = corner[0], corner[2]
        edge_head += 2
    return at if at == end else _DAMAGED


@numba.njit(cache=True, nogil=True)
def _indices(
    source: np.ndarray,  # [B] uint8
    out: np.ndarray,  # [N] uint32
) -> int:
    last = np.zeros(2, np.int64)
    at, end = 1, len(source) - 4
    for i in range(len(out)):
        word, at = _varint(source, at, end)
        if at == _DAMAGED:
            return _DAMAGED
        base = word & 1
        last[base] += -(word >> 2) - 1 if word & 2 else word >> 2
        last[base] &= 0xFFFFFFFF
        out[i] = last[base]
    return at if at == end else _DAMAGED


def _filtered(
    values: np.ndarray,  # [N, stride] uint8, or [N] of indices
    name: str,
) -> np.ndarray:
    if name == "NONE":
        return values
    if name == "EXPONENTIAL":
        words = values.view("<i4")
        exponent = (words >> 24).clip(-100, 100)  # the valid ones
        return np.ldexp(((words << 8) >> 8).astype(np.float32), exponent).astype("<f4")
    signed = values.view(np.int8 if values.shape[1] == 4 else "<i2")
    stored = signed.astype(np.float64)
    if name == "OCTAHEDRAL":
        x, y = (stored[:, :2] / stored[:, 2:3].clip(1)).T
        z = 1 - np.abs(x) - np.abs(y)
        folded = np.minimum(z, 0)
        vectors = np.stack([x - np.copysign(folded, x), y - np.copysign(folded, y), z], axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        stored[:, :3] = _rounded(vectors * np.iinfo(signed.dtype).max)
    elif name == "QUATERNION":
        one = (signed[:, 3:] | 3).astype(np.float64)
        small = stored[:, :3] / np.maximum(one, 1) * np.sqrt(0.5)
        large = np.sqrt((1 - (small**2).sum(axis=1)).clip(0))
        rows, largest = np.arange(len(stored)), signed[:, 3].astype(np.int64) & 3
        for i, component in enumerate((large, *small.T)):
            stored[rows, (largest + i) % 4] = _rounded(component * 32767)
    else:  # COLOR: Y, Co, Cg, and alpha below the bit that tells how many bits there are
        unsigned = values.view(np.uint8 if values.shape[1] == 4 else "<u2")
        y, alpha = unsigned[:, 0].astype(np.int64), unsigned[:, 3].astype(np.int64)
        co, cg = signed[:, 1].astype(np.int64), signed[:, 2].astype(np.int64)
        largest = 2 ** np.frexp(np.maximum(alpha, 1))[1].astype(np.int64) - 1
        alpha &= largest >> 1
        colors = np.stack([y + co - cg, y + cg, y - co - cg, alpha << 1 | alpha & 1], axis=1)
        limit = np.iinfo(unsigned.dtype).max
        return _rounded(colors * (limit / largest)[:, None]).clip(0, limit).astype(unsigned.dtype)
    limits = np.iinfo(signed.dtype)
    return stored.clip(limits.min, limits.max).astype(signed.dtype)


def _rounded(values: np.ndarray) -> np.ndarray:
    """The nearest whole numbers; halves go away from zero."""
    return np.trunc(values + np.copysign(0.5, values))
