"""The kernels of the rasteriser's CPU engine, compiled by numba for one thread.

There are no tiles. Gaussians are sorted by depth once and drawn one after the other, front to back, each over the few
rows and columns where its alpha is at least 1/255, eight pixels at a time (`simd`). A Gaussian of a fitted object
covers 5 x 5 or 6 x 6 pixels at 128 x 128: tiles would store most of them several times and visit many pixels in vain.
A Gaussian's gradient is complete as soon as it has been drawn, so every sum has a fixed order and results repeat bit
for bit. The backward pass draws front to back too: the sum behind a Gaussian is the whole pixel's sum less the part
already drawn, and the same numbers give the same decisions as in the forward pass.

The arithmetic is gsplat 1.5's, both modes (3D Gaussian Splatting, Kerbl et al. 2023, section 4 and 6; the antialiased
mode is Mip-Splatting's compensation, Yu et al. 2024).
"""

import math

import numpy as np
from numba import njit

from clipgs.splats.rasterizer.simd import (
    LANES,
    any_lane,
    least,
    load,
    log2_above,
    magnitude,
    most,
    ramp,
    repeat,
    root,
    store,
    total,
    where,
)
from clipgs.splats.rasterizer.simd import exp2 as vector_exp2

# The numbers of gsplat 1.5.3, which is the reference.
BLUR = 0.3  # pixels^2 added to the projected covariance (eps2d)
NEAR = 0.01  # Gaussians nearer than this are not drawn
ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # a pixel is finished before the Gaussian that would lower its transmittance to this
FIELD_MARGIN = 0.3  # the Jacobian is constant farther than this outside the frame, in half frames

# Rows of the parameter table [14, S]; S is the number of Gaussians rounded up to whole vectors.
MEANS, QUATS, SCALES, OPACITIES, COLORS, PARAMETERS = 0, 3, 7, 10, 11, 14
PARTS = (3, 4, 3, 1, 3)  # the number of rows of each
# Numbers of a Gaussian for drawing, one cache line.
RECORD = 16
# Sums over a Gaussian's pixels: colours (3), then dL/dlog alpha times 1, dx, dy, dx^2, dx dy, dy^2.
MOMENTS = 9
# Planes of a frame [H, 4, stride] (transmittance, colour) and of its gradients [H, 6, stride].
DRAWN, DIFFERENTIATED = 4, 6
_LOG2_E = math.log2(math.e)

_compiled = njit(cache=True, error_model="numpy", nogil=True)
_inlined = njit(forceinline=True, error_model="numpy")


@_inlined
def _splat(params, size, i, camera, width, height):
    """Eight Gaussians in camera space and their projected covariance before the blur.

    Returns the position x, y, z; the Jacobian's four entries; the unit axes in camera space n (9, axis by axis);
    the scaled, projected axes u (3) and w (3), with covariance [[u.u, u.w], [u.w, w.w]].
    """
    mx, my, mz = load(params, i), load(params, size + i), load(params, 2 * size + i)
    x = camera[0] * mx + camera[1] * my + camera[2] * mz + camera[3]
    y = camera[4] * mx + camera[5] * my + camera[6] * mz + camera[7]
    z = camera[8] * mx + camera[9] * my + camera[10] * mz + camera[11]
    fx, fy, cx, cy = camera[12], camera[13], camera[14], camera[15]

    inverse = 1.0 / z
    margin_x = np.float32(FIELD_MARGIN * 0.5) * width / fx
    margin_y = np.float32(FIELD_MARGIN * 0.5) * height / fy
    tx = least(most(x * inverse, repeat(-cx / fx - margin_x)), repeat((width - cx) / fx + margin_x))
    ty = least(most(y * inverse, repeat(-cy / fy - margin_y)), repeat((height - cy) / fy + margin_y))
    j00, j02 = fx * inverse, 0.0 - fx * tx * inverse
    j11, j12 = fy * inverse, 0.0 - fy * ty * inverse

    q0, q1, q2, q3 = _unit_quaternion(params, size, i)
    n0 = _rotated(camera, 1.0 - 2.0 * (q2 * q2 + q3 * q3), 2.0 * (q1 * q2 + q0 * q3), 2.0 * (q1 * q3 - q0 * q2))
    n1 = _rotated(camera, 2.0 * (q1 * q2 - q0 * q3), 1.0 - 2.0 * (q1 * q1 + q3 * q3), 2.0 * (q2 * q3 + q0 * q1))
    n2 = _rotated(camera, 2.0 * (q1 * q3 + q0 * q2), 2.0 * (q2 * q3 - q0 * q1), 1.0 - 2.0 * (q1 * q1 + q2 * q2))
    s0, s1, s2 = _scales(params, size, i)
    u = (s0 * (j00 * n0[0] + j02 * n0[2]), s1 * (j00 * n1[0] + j02 * n1[2]), s2 * (j00 * n2[0] + j02 * n2[2]))
    w = (s0 * (j11 * n0[1] + j12 * n0[2]), s1 * (j11 * n1[1] + j12 * n1[2]), s2 * (j11 * n2[1] + j12 * n2[2]))
    return (x, y, z), (j00, j02, j11, j12), n0, n1, n2, u, w


@_inlined
def _unit_quaternion(params, size, i):
    at = QUATS * size + i
    q0, q1 = load(params, at), load(params, at + size)
    q2, q3 = load(params, at + 2 * size), load(params, at + 3 * size)
    inverse = 1.0 / root(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
    return q0 * inverse, q1 * inverse, q2 * inverse, q3 * inverse


@_inlined
def _scales(params, size, i):
    at = SCALES * size + i
    return load(params, at), load(params, at + size), load(params, at + 2 * size)


@_inlined
def _rotated(camera, x, y, z):
    return (
        camera[0] * x + camera[1] * y + camera[2] * z,
        camera[4] * x + camera[5] * y + camera[6] * z,
        camera[8] * x + camera[9] * y + camera[10] * z,
    )


@_inlined
def _covariance(u, w):
    """The projected covariance before the blur, its determinant, and the determinant after.

    The determinant is the sum of the squared 2 x 2 minors of the axes. For thin discs seen from the side,
    c00 c11 - c01^2 would be a difference of nearly equal products.
    """
    c00 = u[0] * u[0] + u[1] * u[1] + u[2] * u[2]
    c01 = u[0] * w[0] + u[1] * w[1] + u[2] * w[2]
    c11 = w[0] * w[0] + w[1] * w[1] + w[2] * w[2]
    m0 = u[0] * w[1] - u[1] * w[0]
    m1 = u[0] * w[2] - u[2] * w[0]
    m2 = u[1] * w[2] - u[2] * w[1]
    sharp = m0 * m0 + m1 * m1 + m2 * m2
    return c00, c01, c11, sharp, sharp + BLUR * (c00 + c11) + BLUR * BLUR


@_compiled
def project(
    params,  # [14 * S]
    camera,  # [16]: rows 0 to 2 of the view matrix, fx, fy, cx, cy
    width,
    height,
    antialiased,
    records,  # out [S * 16]
    drawn,  # out [S]: 1 where the Gaussian can touch a pixel, else 0
    depths,  # out [S]: of the drawn Gaussians
    ids,  # out [S]: their indices
):
    """Project all Gaussians; returns how many can touch a pixel. Those with a number that is not finite cannot."""
    size = drawn.size
    frame_w, frame_h = np.float32(width), np.float32(height)
    lanes = np.empty(14 * LANES, np.float32)
    flags = np.empty(2 * LANES, np.float32)
    one, zero = repeat(np.float32(1)), repeat(np.float32(0))
    n = 0
    for i in range(0, size, LANES):
        (x, y, z), _, _, _, _, u, w = _splat(params, size, i, camera, frame_w, frame_h)
        c00, c01, c11, sharp, det = _covariance(u, w)
        opacity = load(params, OPACITIES * size + i)
        if antialiased:
            opacity = opacity * root(sharp / det)
        c00, c11 = c00 + BLUR, c11 + BLUR
        px = camera[12] * x / z + camera[14]
        py = camera[13] * y / z + camera[15]
        # alpha >= 1/255 within the ellipse a dx^2 + 2 b dx dy + d dy^2 <= reach
        reach = (2.0 * math.log(2.0)) * log2_above(most(opacity * 255.0, one))
        reach_x, reach_y = root(reach * c00), root(reach * c11)
        red = load(params, COLORS * size + i)
        green = load(params, (COLORS + 1) * size + i)
        blue = load(params, (COLORS + 2) * size + i)
        ok = (z >= NEAR) & (opacity >= ALPHA_MIN)
        ok = ok & (px + reach_x > 0.0) & (px - reach_x < frame_w) & (py + reach_y > 0.0) & (py - reach_y < frame_h)
        ok = ok & (magnitude(red) + magnitude(green) + magnitude(blue) + c00 + c11 + opacity < 1e30)
        store(drawn, i, where(ok, one, zero))
        if not any_lane(ok):
            continue
        inverse = 1.0 / det
        store(lanes, 0, px)
        store(lanes, 8, py)
        store(lanes, 16, (-0.5 * _LOG2_E) * c11 * inverse)
        store(lanes, 24, _LOG2_E * c01 * inverse)
        store(lanes, 32, (-0.5 * _LOG2_E) * c00 * inverse)
        store(lanes, 40, opacity)
        store(lanes, 48, red)
        store(lanes, 56, green)
        store(lanes, 64, blue)
        store(lanes, 72, reach_x)
        store(lanes, 80, reach_y)
        store(lanes, 88, reach * det / c11)
        store(lanes, 96, det / (c11 * c11))
        store(lanes, 104, c01 / c11)
        store(flags, 0, z)
        for j in range(LANES):
            if drawn[i + j] > 0:
                for k in range(14):
                    records[(i + j) * RECORD + k] = lanes[k * LANES + j]
                depths[n] = flags[j]
                ids[n] = i + j
                n += 1
    return n


@_compiled
def sort_by_depth(
    depths,  # [S] uint32: the bits of positive floats, which have the same order
    ids,  # [S] int32, sorted in place
    n,
    depths_b,  # scratch [S] uint32
    ids_b,  # scratch [S] int32
):
    """Stable radix sort of the first n, 11 bits a pass; returns the sorted ids (one of the two id buffers)."""
    counts = np.zeros((3, 2048), np.int64)
    for k in range(n):
        d = depths[k]
        counts[0, d & 2047] += 1
        counts[1, (d >> 11) & 2047] += 1
        counts[2, d >> 22] += 1
    for p in range(3):
        start = 0
        for c in range(2048):
            counts[p, c], start = start, start + counts[p, c]
        shift = np.uint32(11 * p)
        for k in range(n):
            d = depths[k]
            c = (d >> shift) & np.uint32(2047)
            to = counts[p, c]
            counts[p, c] = to + 1
            depths_b[to] = d
            ids_b[to] = ids[k]
        depths, depths_b = depths_b, depths
        ids, ids_b = ids_b, ids
    return ids


@_inlined
def _span(middle, reach, size):
    """First and last of `size` pixels whose centres are within `reach` of `middle`."""
    first = math.ceil(max(middle - reach, np.float32(-1)) - np.float32(0.5))
    last = math.floor(min(middle + reach, np.float32(size + 1)) - np.float32(0.5))
    return max(first, 0), min(last, size - 1)


@_inlined
def _row_span(records, at, dy, width):
    """First and last column of a Gaussian's ellipse in one row."""
    reach = math.sqrt(max(records[at + 11] - records[at + 12] * dy * dy, np.float32(0)))
    return _span(records[at] + records[at + 13] * dy, reach, width)


@_compiled
def draw(
    ids,  # [S], front to back
    n,
    records,  # [S * 16]
    frame,  # out [H * 4 * stride]
    stride,
    width,
    height,
):
    """Composite the Gaussians front to back.

    The transmittance is negative where a pixel was finished early; its magnitude counts.
    """
    row = DRAWN * stride
    one, zero = repeat(np.float32(1)), repeat(np.float32(0))
    for y in range(height):
        for x in range(0, stride, LANES):
            store(frame, y * row + x, one)
            store(frame, y * row + stride + x, zero)
            store(frame, y * row + 2 * stride + x, zero)
            store(frame, y * row + 3 * stride + x, zero)
    for k in range(n):
        at = np.int64(ids[k]) * RECORD
        px, py = records[at], records[at + 1]
        qa, qb, qc = records[at + 2], records[at + 3], records[at + 4]
        opacity = records[at + 5]
        red, green, blue = records[at + 6], records[at + 7], records[at + 8]
        left, right = _span(px, records[at + 9], width)
        top, bottom = _span(py, records[at + 10], height)
        narrow = right - left < LANES  # one vector a row: no need to know how far each row reaches
        for y in range(top, bottom + 1):
            dy = np.float32(y) + np.float32(0.5) - py
            if narrow:
                right = left
            else:
                left, right = _row_span(records, at, dy, width)
            slope, level = qb * dy, qc * dy * dy
            for x in range(left, right + 1, LANES):
                t = y * row + x
                dx = ramp() + (np.float32(x) + np.float32(0.5) - px)
                alpha = _alpha(dx, qa, slope, level, opacity)
                _, weight, passed = _pass(alpha, load(frame, t))
                store(frame, t, passed)
                store(frame, t + stride, load(frame, t + stride) + weight * red)
                store(frame, t + 2 * stride, load(frame, t + 2 * stride) + weight * green)
                store(frame, t + 3 * stride, load(frame, t + 3 * stride) + weight * blue)


@_inlined
def _alpha(dx, qa, slope, level, opacity):
    """Opacity times the Gaussian's fall-off in eight pixels of a row, uncapped."""
    # 2^-30 is far below 1/255 and keeps the exponent's bits in range
    return opacity * vector_exp2(most((qa * dx + slope) * dx + level, -30.0))


@_inlined
def _pass(alpha, passed):
    """Composite a Gaussian into eight pixels with the transmittance `passed`.

    Returns where it contributes (not where its alpha is too small or the pixel is finished), its weight (0 elsewhere),
    and the new transmittance.
    """
    zero = repeat(np.float32(0))
    weight = least(alpha, ALPHA_MAX) * passed
    through = passed - weight
    touched = alpha >= ALPHA_MIN
    kept = touched & (through > TRANSMITTANCE_MIN)  # never where the pixel is finished: negative
    return kept, where(kept, weight, zero), where(kept, through, where(touched, zero - magnitude(passed), passed))


@_compiled
def begin_gradients(
    frame,  # [H * 4 * stride], as drawn
    gradients,  # in and out [H * 6 * stride]: planes 2 to 5 hold dL/d colour and dL/d alpha
    stride,
    height,
):
    """Set plane 0 to full transmittance and plane 1 to each pixel's sum of weight times dL/dweight."""
    one = repeat(np.float32(1))
    for y in range(height):
        for x in range(0, stride, LANES):
            f, g = y * DRAWN * stride + x, y * DIFFERENTIATED * stride + x
            behind = load(gradients, g + 5 * stride) * (1.0 - magnitude(load(frame, f)))
            for c in range(3):
                behind = behind + load(gradients, g + (2 + c) * stride) * load(frame, f + (1 + c) * stride)
            store(gradients, g, one)
            store(gradients, g + stride, behind)


@_compiled
def differentiate(
    ids,  # [S], front to back
    n,
    records,  # [S * 16]
    gradients,  # scratch [H * 6 * stride], from begin_gradients
    stride,
    width,
    height,
    moments,  # out [9 * S]
):
    """Front to back again: the sums over each Gaussian's pixels for its gradients."""
    row = DIFFERENTIATED * stride
    size = moments.size // MOMENTS
    zero = repeat(np.float32(0))
    moments[:] = 0
    for k in range(n):
        i = np.int64(ids[k])
        at = i * RECORD
        px, py = records[at], records[at + 1]
        qa, qb, qc = records[at + 2], records[at + 3], records[at + 4]
        opacity = records[at + 5]
        red, green, blue = records[at + 6], records[at + 7], records[at + 8]
        left, right = _span(px, records[at + 9], width)
        top, bottom = _span(py, records[at + 10], height)
        narrow = right - left < LANES  # one vector a row: no need to know how far each row reaches
        d_red, d_green, d_blue = zero, zero, zero
        m, mx, my, mxx, mxy, myy = zero, zero, zero, zero, zero, zero
        for y in range(top, bottom + 1):
            dy = np.float32(y) + np.float32(0.5) - py
            if narrow:
                right = left
            else:
                left, right = _row_span(records, at, dy, width)
            slope, level = qb * dy, qc * dy * dy
            row_m, row_mx = zero, zero
            for x in range(left, right + 1, LANES):
                t = y * row + x
                dx = ramp() + (np.float32(x) + np.float32(0.5) - px)
                alpha = _alpha(dx, qa, slope, level, opacity)
                before = load(gradients, t)
                kept, weight, passed = _pass(alpha, before)
                g_red = load(gradients, t + 2 * stride)
                g_green = load(gradients, t + 3 * stride)
                g_blue = load(gradients, t + 4 * stride)
                value = load(gradients, t + 5 * stride) + red * g_red + green * g_green + blue * g_blue
                behind = load(gradients, t + stride) - weight * value
                store(gradients, t, passed)
                store(gradients, t + stride, behind)
                d_red = d_red + weight * g_red
                d_green = d_green + weight * g_green
                d_blue = d_blue + weight * g_blue
                # dL/dalpha = before * value - behind / (1 - alpha); a capped alpha has no gradient
                share = alpha * (before * value - behind / (1.0 - alpha))
                share = where(kept & (alpha < ALPHA_MAX), share, zero)
                row_m = row_m + share
                share = share * dx
                row_mx = row_mx + share
                mxx = mxx + share * dx
            m = m + row_m
            mx = mx + row_mx
            my = my + row_m * dy
            mxy = mxy + row_mx * dy
            myy = myy + row_m * (dy * dy)
        moments[i] = total(d_red)
        moments[size + i] = total(d_green)
        moments[2 * size + i] = total(d_blue)
        moments[3 * size + i] = total(m)
        moments[4 * size + i] = total(mx)
        moments[5 * size + i] = total(my)
        moments[6 * size + i] = total(mxx)
        moments[7 * size + i] = total(mxy)
        moments[8 * size + i] = total(myy)


@_compiled
def project_gradients(
    params,  # [14 * S]
    camera,  # [16]
    width,
    height,
    antialiased,
    drawn,  # [S]
    moments,  # [9 * S]
    gradients,  # out [14 * S], of the parameters
):
    """From the sums over pixels to the gradients of the fourteen parameters; nothing for those not drawn."""
    size = drawn.size
    frame_w, frame_h = np.float32(width), np.float32(height)
    fx, fy, cx, cy = camera[12], camera[13], camera[14], camera[15]
    zero = repeat(np.float32(0))
    for i in range(0, size, LANES):
        ok = load(drawn, i) > 0.0
        if not any_lane(ok):
            for k in range(PARAMETERS):
                store(gradients, k * size + i, zero)
            continue
        (x, y, z), (j00, j02, j11, j12), n0, n1, n2, u, w = _splat(params, size, i, camera, frame_w, frame_h)
        c00, c01, c11, sharp, det = _covariance(u, w)
        inverse = 1.0 / det
        a, b, d = (c11 + BLUR) * inverse, zero - c01 * inverse, (c00 + BLUR) * inverse
        ga = -0.5 * load(moments, 6 * size + i)
        gb = -0.5 * load(moments, 7 * size + i)  # half: b is in the matrix twice
        gd = -0.5 * load(moments, 8 * size + i)
        # dL/dcovariance = -C G C, with C the inverse covariance (the conic) and G its gradient
        h00, h01 = a * ga + b * gb, a * gb + b * gd
        h10, h11 = b * ga + d * gb, b * gb + d * gd
        v00 = zero - (h00 * a + h01 * b)
        v01 = zero - (h00 * b + h01 * d)
        v11 = zero - (h10 * b + h11 * d)
        # alpha is opacity times the fall-off, so dL/dopacity = sum(dL/dlog alpha) / opacity in both modes
        opacity = load(params, OPACITIES * size + i)
        log_alpha = load(moments, 3 * size + i)
        if antialiased:
            # The opacity is multiplied by sqrt(r), r = sharp / det: dL/dr = dL/dlog alpha / (2 r). The small number
            # avoids a division by 0 for needles seen end on.
            ratio = sharp * inverse
            g = 0.5 * log_alpha / (ratio + 1e-12) * inverse
            v00 = v00 + g * (c11 - ratio * (c11 + BLUR))
            v01 = v01 + g * (ratio - 1.0) * c01
            v11 = v11 + g * (c00 - ratio * (c00 + BLUR))
        store(gradients, OPACITIES * size + i, where(ok, log_alpha / opacity, zero))

        q = _unit_quaternion(params, size, i)
        g00, g02, g11, g12, r0, s0 = _axis_gradients(camera, u[0], w[0], n0, v00, v01, v11, j00, j02, j11, j12)
        h00, h02, h11, h12, r1, s1 = _axis_gradients(camera, u[1], w[1], n1, v00, v01, v11, j00, j02, j11, j12)
        k00, k02, k11, k12, r2, s2 = _axis_gradients(camera, u[2], w[2], n2, v00, v01, v11, j00, j02, j11, j12)
        scale = _scales(params, size, i)
        g00 = g00 * scale[0] + h00 * scale[1] + k00 * scale[2]
        g02 = g02 * scale[0] + h02 * scale[1] + k02 * scale[2]
        g11 = g11 * scale[0] + h11 * scale[1] + k11 * scale[2]
        g12 = g12 * scale[0] + h12 * scale[1] + k12 * scale[2]
        store(gradients, SCALES * size + i, where(ok, s0, zero))
        store(gradients, (SCALES + 1) * size + i, where(ok, s1, zero))
        store(gradients, (SCALES + 2) * size + i, where(ok, s2, zero))

        r0 = (r0[0] * scale[0], r0[1] * scale[0], r0[2] * scale[0])
        r1 = (r1[0] * scale[1], r1[1] * scale[1], r1[2] * scale[1])
        r2 = (r2[0] * scale[2], r2[1] * scale[2], r2[2] * scale[2])
        _store_quaternion_gradients(params, size, i, q, r0, r1, r2, ok, gradients)

        # the mean, through its position in the frame and through the Jacobian
        m_x, m_y = load(moments, 4 * size + i), load(moments, 5 * size + i)
        gu, gv = a * m_x + b * m_y, d * m_y + b * m_x
        iz = 1.0 / z
        gx, gy = fx * iz * gu, fy * iz * gv
        gz = zero - (x * gx + y * gy) * iz - (j00 * g00 + j11 * g11) * iz
        # j02 = -fx x / z^2, or where the ratio x / z is clamped, -fx limit / z
        edge_x = np.float32(FIELD_MARGIN * 0.5) * frame_w / fx
        edge_y = np.float32(FIELD_MARGIN * 0.5) * frame_h / fy
        tx, ty = x * iz, y * iz
        inside_x = (tx >= repeat(-cx / fx - edge_x)) & (tx <= repeat((frame_w - cx) / fx + edge_x))
        inside_y = (ty >= repeat(-cy / fy - edge_y)) & (ty <= repeat((frame_h - cy) / fy + edge_y))
        gx = gx - where(inside_x, fx * iz * iz * g02, zero)
        gy = gy - where(inside_y, fy * iz * iz * g12, zero)
        gz = gz - where(inside_x, 2.0 * j02 * iz * g02, j02 * iz * g02)
        gz = gz - where(inside_y, 2.0 * j12 * iz * g12, j12 * iz * g12)
        for k in range(3):
            g = camera[k] * gx + camera[4 + k] * gy + camera[8 + k] * gz
            store(gradients, (MEANS + k) * size + i, where(ok, g, zero))
            store(gradients, (COLORS + k) * size + i, where(ok, load(moments, k * size + i), zero))


@_inlined
def _axis_gradients(camera, u, w, n, v00, v01, v11, j00, j02, j11, j12):
    """One axis's part of the gradients: of the Jacobian and of the rotation's column, both without the factor of the
    axis's scale, and of the scale."""
    gu = 2.0 * (v00 * u + v01 * w)
    gw = 2.0 * (v01 * u + v11 * w)
    x, y, z = j00 * gu, j11 * gw, j02 * gu + j12 * gw
    column = (
        camera[0] * x + camera[4] * y + camera[8] * z,
        camera[1] * x + camera[5] * y + camera[9] * z,
        camera[2] * x + camera[6] * y + camera[10] * z,
    )
    return gu * n[0], gu * n[2], gw * n[1], gw * n[2], column, x * n[0] + y * n[1] + z * n[2]


@_inlined
def _store_quaternion_gradients(params, size, i, q, r0, r1, r2, ok, gradients):
    """From the gradient of the rotation's columns r0, r1, r2 to that of the quaternion before normalisation."""
    q0, q1, q2, q3 = q
    e0 = 2.0 * (q3 * (r0[1] - r1[0]) + q2 * (r2[0] - r0[2]) + q1 * (r1[2] - r2[1]))
    e1 = 2.0 * (q2 * (r1[0] + r0[1]) + q3 * (r2[0] + r0[2]) + q0 * (r1[2] - r2[1]) - 2.0 * q1 * (r1[1] + r2[2]))
    e2 = 2.0 * (q1 * (r1[0] + r0[1]) + q3 * (r2[1] + r1[2]) + q0 * (r2[0] - r0[2]) - 2.0 * q2 * (r0[0] + r2[2]))
    e3 = 2.0 * (q1 * (r2[0] + r0[2]) + q2 * (r2[1] + r1[2]) + q0 * (r0[1] - r1[0]) - 2.0 * q3 * (r0[0] + r1[1]))
    along = e0 * q0 + e1 * q1 + e2 * q2 + e3 * q3
    at = QUATS * size + i
    p0, p1 = load(params, at), load(params, at + size)
    p2, p3 = load(params, at + 2 * size), load(params, at + 3 * size)
    inverse = 1.0 / root(p0 * p0 + p1 * p1 + p2 * p2 + p3 * p3)
    zero = repeat(np.float32(0))
    store(gradients, at, where(ok, (e0 - along * q0) * inverse, zero))
    store(gradients, at + size, where(ok, (e1 - along * q1) * inverse, zero))
    store(gradients, at + 2 * size, where(ok, (e2 - along * q2) * inverse, zero))
    store(gradients, at + 3 * size, where(ok, (e3 - along * q3) * inverse, zero))
