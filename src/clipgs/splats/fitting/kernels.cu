// The kernels of a fit on CUDA: one step of Adam for B objects at once, from the projection to the update.
//
// Nothing depends on a number that only the device knows: every buffer has a fixed size, so a step never waits for the
// host and can be captured in a CUDA graph. Which view, ground and learning rate a step takes is read from tables by a
// counter on the device.
//
// A frame is cut into regions of 32 x 32 pixels and those into tiles of 8 x 8. Gaussians are sorted by depth once an
// object; each region gets the list of those whose box touches it, in that order; a warp draws one tile, two pixels a
// lane, and tests 32 Gaussians of the list at once against the tile, exactly. The backward pass draws front to back
// too: the sum behind a Gaussian is the whole pixel's less the part drawn (as in the CPU's kernels.py). Its nine
// sums over a tile are added across a warp by halving, fourteen shuffles instead of forty-five.
//
// The arithmetic is gsplat 1.5's, as the CPU engine's (3D Gaussian Splatting, Kerbl et al. 2023, sections 4 and 6).

#include <cstdint>
#include <cuda_runtime.h>

namespace {

// Those of the CPU engine (rasterizer/kernels.py, schedule.py), which cuda.py hands over when it compiles this.
constexpr float BLUR = CLIPGS_BLUR, NEAR = CLIPGS_NEAR, FIELD_MARGIN = CLIPGS_FIELD_MARGIN;
constexpr float ALPHA_MIN = CLIPGS_ALPHA_MIN, ALPHA_MAX = CLIPGS_ALPHA_MAX;
constexpr float TRANSMITTANCE_MIN = CLIPGS_TRANSMITTANCE_MIN;
constexpr float BETA_1 = CLIPGS_BETA_1, BETA_2 = CLIPGS_BETA_2, EPSILON = CLIPGS_EPSILON;
constexpr float LOG2_ALPHA_MIN = CLIPGS_LOG2_ALPHA_MIN, ALPHA_MIN_INVERSE = CLIPGS_ALPHA_MIN_INVERSE;
constexpr int PARAMETERS = CLIPGS_PARAMETERS;

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float REACH_MARGIN = 0.01f;      // of an exponent, for rounding in the tile test
constexpr int TILE = 8, TILES = 4, REGION = TILE * TILES;
constexpr int DEPTH_BITS = 22;             // the rest of a 31-bit key is the object
constexpr uint32_t HIDDEN = (1u << DEPTH_BITS) - 1;
constexpr float DEPTHS = 4.0f;             // sorted apart up to this many distances of the camera from the origin
constexpr int SUMS = 8;                    // of nine; the ninth has its own buffer: eight fill a sector of memory
constexpr int RATES = PARAMETERS + 1;      // of each parameter; the second moment's correction

constexpr int RADIUS = 5, TAPS = 2 * RADIUS + 1;
constexpr float C1 = 0.01f * 0.01f, C2 = 0.03f * 0.03f;
__constant__ float WINDOW[TAPS];

} // namespace

// All of a fit, as `cuda.py` fills it in. B objects, N Gaussians, V views, T steps, R regions.
struct Fit {
    int objects, gaussians, views, width, height, steps;
    float ssim_weight, alpha_weight;
    const uchar4 *rgba;      // [B, V, H, W]
    const float *cameras;    // [B, V, 16]: rows 0 to 2 of the view matrix, fx, fy, cx, cy
    const int *order;        // [B, T], of the views
    const float *grounds;    // [B, T, 3]
    const float *rates;      // [T, 15]
    const int *step;         // [1]
    float *raw;              // [B, 14, N]: means, quaternions, log-scales, opacity logit, colour logits
    float *moments;          // [B, 2, 14, N]
    float4 *records;         // [B, N, 3]: x, y, qa, qb; qc, log2 opacity, red, green; blue, index
    uint32_t *projected_box; // [B, N]: first and last tile across, first and last down, a byte each
    int *keys;               // [B, N]
    const int *sorted_keys;  // [B, N]
    const int64_t *sorted;   // [B, N]
    uint2 *boxes;            // [B, N], in the order of depth: the box, the Gaussian
    int *drawn;              // [B]
    uint32_t *lists;         // [B, R, N]: Gaussians in the order of depth, and which of the region's tiles (8 bits)
    int *counts;             // [B, R]
    float4 *frame;           // [B, H, W]: colour over nothing, transmittance
    float4 *pixel_gradients; // [B, H, W]: dL/d colour, dL/d alpha
    float *sums;             // [B, N, 8]: of dL/dlog alpha times 1, dx, dy, dx^2, dx dy, dy^2; dL/d red, dL/d green
    float *blue_sums;        // [B, N]
};

namespace {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ const float *camera_of(const Fit &fit, int object, int step) {
    return fit.cameras + (static_cast<size_t>(object) * fit.views + fit.order[object * fit.steps + step]) * 16;
}

// A Gaussian in camera space: position, Jacobian, unit axes n, scaled and projected axes u and w, with the covariance
// [[u.u, u.w], [u.w, w.w]] before the blur.
struct Splat {
    float x, y, z, j00, j02, j11, j12;
    float q[4], inverse_length;
    float scale[3], n[3][3], u[3], w[3];
    float c00, c01, c11, determinant; // the determinant is that after the blur
    bool inside_x, inside_y;

    __device__ Splat(const float *raw, size_t stride, const float *camera, float width, float height) {
        float mx = raw[0], my = raw[stride], mz = raw[2 * stride];
        x = camera[0] * mx + camera[1] * my + camera[2] * mz + camera[3];
        y = camera[4] * mx + camera[5] * my + camera[6] * mz + camera[7];
        z = camera[8] * mx + camera[9] * my + camera[10] * mz + camera[11];
        float fx = camera[12], fy = camera[13], cx = camera[14], cy = camera[15];
        float inverse = 1.0f / z;
        float margin_x = FIELD_MARGIN * 0.5f * width / fx, margin_y = FIELD_MARGIN * 0.5f * height / fy;
        float tx = x * inverse, ty = y * inverse;
        float left = -cx / fx - margin_x, right = (width - cx) / fx + margin_x;
        float top = -cy / fy - margin_y, bottom = (height - cy) / fy + margin_y;
        inside_x = tx >= left && tx <= right;
        inside_y = ty >= top && ty <= bottom;
        j00 = fx * inverse;
        j02 = -fx * fminf(fmaxf(tx, left), right) * inverse;
        j11 = fy * inverse;
        j12 = -fy * fminf(fmaxf(ty, top), bottom) * inverse;

        for (int k = 0; k < 4; ++k) q[k] = raw[(3 + k) * stride];
        inverse_length = rsqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
        for (int k = 0; k < 4; ++k) q[k] *= inverse_length;
        float q0 = q[0], q1 = q[1], q2 = q[2], q3 = q[3];
        float axes[3][3] = {
            {1 - 2 * (q2 * q2 + q3 * q3), 2 * (q1 * q2 + q0 * q3), 2 * (q1 * q3 - q0 * q2)},
            {2 * (q1 * q2 - q0 * q3), 1 - 2 * (q1 * q1 + q3 * q3), 2 * (q2 * q3 + q0 * q1)},
            {2 * (q1 * q3 + q0 * q2), 2 * (q2 * q3 - q0 * q1), 1 - 2 * (q1 * q1 + q2 * q2)},
        };
        c00 = c01 = c11 = 0;
        for (int k = 0; k < 3; ++k) {
            for (int i = 0; i < 3; ++i)
                n[k][i] = camera[4 * i] * axes[k][0] + camera[4 * i + 1] * axes[k][1] + camera[4 * i + 2] * axes[k][2];
            scale[k] = expf(raw[(7 + k) * stride]);
            u[k] = scale[k] * (j00 * n[k][0] + j02 * n[k][2]);
            w[k] = scale[k] * (j11 * n[k][1] + j12 * n[k][2]);
            c00 += u[k] * u[k];
            c01 += u[k] * w[k];
            c11 += w[k] * w[k];
        }
        // squared 2 x 2 minors: no difference of nearly equal products for thin discs seen from the side
        float m0 = u[0] * w[1] - u[1] * w[0], m1 = u[0] * w[2] - u[2] * w[0], m2 = u[1] * w[2] - u[2] * w[1];
        determinant = m0 * m0 + m1 * m1 + m2 * m2 + BLUR * (c00 + c11) + BLUR * BLUR;
    }
};

__device__ __forceinline__ int clamped(float value, int most) {
    return static_cast<int>(fminf(fmaxf(value, -1.0f), static_cast<float>(most)));
}

__global__ void __launch_bounds__(128) project_kernel(Fit fit, int offset) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, object = blockIdx.y, N = fit.gaussians;
    if (i >= N) return;
    const float *camera = camera_of(fit, object, *fit.step + offset);
    const float *raw = fit.raw + static_cast<size_t>(object) * PARAMETERS * N + i;
    Splat splat(raw, N, camera, fit.width, fit.height);
    float c00 = splat.c00 + BLUR, c11 = splat.c11 + BLUR;
    float opacity = sigmoid(raw[10 * static_cast<size_t>(N)]);
    float px = camera[12] * splat.x / splat.z + camera[14], py = camera[13] * splat.y / splat.z + camera[15];
    // alpha >= 1/255 within the ellipse a dx^2 + 2 b dx dy + d dy^2 <= reach
    float reach = 2.0f * logf(fmaxf(opacity * ALPHA_MIN_INVERSE, 1.0f));
    float reach_x = sqrtf(reach * c00), reach_y = sqrtf(reach * c11);
    int left = clamped(ceilf(px - reach_x - 0.5f), fit.width), right = clamped(floorf(px + reach_x - 0.5f), fit.width);
    int top = clamped(ceilf(py - reach_y - 0.5f), fit.height);
    int bottom = clamped(floorf(py + reach_y - 0.5f), fit.height);
    left = max(left, 0), top = max(top, 0);
    right = min(right, fit.width - 1), bottom = min(bottom, fit.height - 1);
    // the last comparison is false where a number is not finite
    bool ok = splat.z >= NEAR && opacity >= ALPHA_MIN && left <= right && top <= bottom &&
              fabsf(px) + fabsf(py) + c00 + c11 < 1e30f;

    size_t at = static_cast<size_t>(object) * N + i;
    float distance = sqrtf(camera[3] * camera[3] + camera[7] * camera[7] + camera[11] * camera[11]);
    uint32_t depth = HIDDEN;
    if (ok) {
        depth = static_cast<uint32_t>(fminf(splat.z / (DEPTHS * distance), 1.0f) * (HIDDEN - 1));
        float inverse = 1.0f / splat.determinant;
        float red = sigmoid(raw[11 * static_cast<size_t>(N)]), green = sigmoid(raw[12 * static_cast<size_t>(N)]);
        float blue = sigmoid(raw[13 * static_cast<size_t>(N)]);
        float4 *record = fit.records + 3 * at;
        record[0] = {px, py, -0.5f * LOG2_E * c11 * inverse, LOG2_E * splat.c01 * inverse};
        record[1] = {-0.5f * LOG2_E * c00 * inverse, log2f(opacity), red, green};
        record[2] = {blue, __int_as_float(i), 0.0f, 0.0f};
        fit.projected_box[at] = (left / TILE) | (right / TILE) << 8 | (top / TILE) << 16 | (bottom / TILE) << 24;
    }
    fit.keys[at] = static_cast<int>(static_cast<uint32_t>(object) << DEPTH_BITS | depth);
}

// Boxes in the order of depth, and how many of an object are drawn.
__global__ void __launch_bounds__(256) reorder_kernel(Fit fit) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, object = blockIdx.y, N = fit.gaussians;
    if (i >= N) return;
    size_t at = static_cast<size_t>(object) * N + i;
    bool hidden = (fit.sorted_keys[at] & HIDDEN) == HIDDEN;
    if (hidden) {
        if (i == 0 || (fit.sorted_keys[at - 1] & HIDDEN) != HIDDEN) fit.drawn[object] = i;
        return;
    }
    if (i == N - 1) fit.drawn[object] = N;
    size_t from = fit.sorted[at];
    fit.boxes[at] = {fit.projected_box[from], static_cast<uint32_t>(from - static_cast<size_t>(object) * N)};
}

// One warp a region: the Gaussians whose box touches it, in the order of depth.
__global__ void __launch_bounds__(128) list_kernel(Fit fit, int across, int regions) {
    constexpr int AHEAD = 4;
    int region = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, object = blockIdx.y;
    if (region >= regions) return;
    int rx = region % across, ry = region / across, drawn = fit.drawn[object];
    const uint2 *boxes = fit.boxes + static_cast<size_t>(object) * fit.gaussians;
    uint32_t *list = fit.lists + (static_cast<size_t>(object) * regions + region) * fit.gaussians;
    int count = 0;
    for (int base = 0; base < drawn; base += 32 * AHEAD) {
        uint2 ahead[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            int i = base + 32 * k + lane;
            ahead[k] = i < drawn ? boxes[i] : make_uint2(0x00ff00ffu, 0); // touches nothing: its first tile is behind its last
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            uint32_t box = ahead[k].x;
            int x0 = static_cast<int>(box & 255) - TILES * rx, x1 = static_cast<int>(box >> 8 & 255) - TILES * rx;
            int y0 = static_cast<int>(box >> 16 & 255) - TILES * ry, y1 = static_cast<int>(box >> 24) - TILES * ry;
            bool hit = x0 < TILES && x1 >= 0 && y0 < TILES && y1 >= 0 && x0 <= x1;
            unsigned mask = __ballot_sync(~0u, hit);
            if (hit) {
                uint32_t tiles = max(x0, 0) | min(x1, TILES - 1) << 2 | max(y0, 0) << 4 | min(y1, TILES - 1) << 6;
                list[count + __popc(mask & ((1u << lane) - 1))] = ahead[k].y | tiles << 24;
            }
            count += __popc(mask);
        }
    }
    if (lane == 0) fit.counts[object * regions + region] = count;
}

// Whether a Gaussian's alpha reaches 1/255 anywhere in a tile: the exponent is largest on an edge that faces its mean.
__device__ __forceinline__ bool reaches(float4 a, float qc, float log2_opacity, float left, float top) {
    float dx0 = left - a.x, dx1 = dx0 + (TILE - 1), dy0 = top - a.y, dy1 = dy0 + (TILE - 1);
    float ex = dx0 > 0 ? dx0 : fminf(dx1, 0.0f), ey = dy0 > 0 ? dy0 : fminf(dy1, 0.0f);
    float dy = fminf(fmaxf(-0.5f * __fdividef(a.w * ex, qc), dy0), dy1);
    float dx = fminf(fmaxf(-0.5f * __fdividef(a.w * ey, a.z), dx0), dx1);
    // where an edge does not face the mean, its value is that of some point of the tile, and the other's is no less
    float by_x = (a.z * ex + a.w * dy) * ex + qc * dy * dy, by_y = (a.z * dx + a.w * ey) * dx + qc * ey * ey;
    return log2_opacity + fmaxf(by_x, by_y) + REACH_MARGIN >= LOG2_ALPHA_MIN;
}

// The Gaussians of one tile, in the order of depth, 32 of the region's list at a time; a warp's own state.
struct Tile {
    const uint32_t *list;
    const float4 *records;
    float4 (*staged)[3]; // [32] in shared memory
    int count, lane, tx, ty;
    float left, top;
    bool outside;

    __device__ Tile(const Fit &fit, int object, int across, int regions, float4 (*shared)[32][3]) {
        int warp = threadIdx.x / 32, region = blockIdx.x / 4, quarter = blockIdx.x % 4;
        lane = threadIdx.x % 32;
        tx = 2 * (quarter % 2) + warp % 2;
        ty = 2 * (quarter / 2) + warp / 2;
        left = (region % across) * REGION + tx * TILE + 0.5f;
        top = (region / across) * REGION + ty * TILE + 0.5f;
        outside = left > fit.width || top > fit.height;
        size_t row = static_cast<size_t>(object) * regions + region;
        list = fit.lists + row * fit.gaussians;
        count = fit.counts[row];
        records = fit.records + static_cast<size_t>(object) * fit.gaussians * 3;
        staged = shared[warp];
    }

    // How many of the list's 32 from `base` on reach the tile; these are then staged.
    __device__ int stage(int base) {
        bool hit = false;
        float4 a, b, c;
        if (base + lane < count) {
            uint32_t entry = list[base + lane];
            int x0 = entry >> 24 & 3, x1 = entry >> 26 & 3, y0 = entry >> 28 & 3, y1 = entry >> 30;
            if (tx >= x0 && tx <= x1 && ty >= y0 && ty <= y1) {
                const float4 *record = records + 3 * (entry & 0xffffff);
                a = record[0], b = record[1], c = record[2];
                hit = reaches(a, b.x, b.y, left, top);
            }
        }
        unsigned mask = __ballot_sync(~0u, hit);
        __syncwarp();
        if (hit) {
            int slot = __popc(mask & ((1u << lane) - 1));
            staged[slot][0] = a, staged[slot][1] = b, staged[slot][2] = c;
        }
        __syncwarp();
        return __popc(mask);
    }
};

// What a Gaussian does to a pixel; the transmittance is negative where the pixel is finished. Both passes take their
// decisions here, from the same numbers.
struct Pixel {
    float passed;

    // Returns the Gaussian's weight, 0 where it has none.
    __device__ __forceinline__ float take(float alpha) {
        float weight = fminf(alpha, ALPHA_MAX) * passed, through = passed - weight;
        bool touched = alpha >= ALPHA_MIN, kept = touched && through > TRANSMITTANCE_MIN;
        passed = kept ? through : (touched ? -fabsf(passed) : passed);
        return kept ? weight : 0.0f;
    }
};

__global__ void __launch_bounds__(128) draw_kernel(Fit fit, int across, int regions) {
    __shared__ float4 shared[4][32][3];
    int object = blockIdx.y;
    Tile tile(fit, object, across, regions, shared);
    if (tile.outside) return;
    float x = tile.left + tile.lane % TILE, y = tile.top + tile.lane / TILE;
    bool in_0 = x < fit.width && y < fit.height, in_1 = x < fit.width && y + 4 < fit.height;
    Pixel p0{in_0 ? 1.0f : -1.0f}, p1{in_1 ? 1.0f : -1.0f};
    float r0 = 0, g0 = 0, b0 = 0, r1 = 0, g1 = 0, b1 = 0;
    for (int base = 0; base < tile.count; base += 32) {
        int hits = tile.stage(base);
        for (int j = 0; j < hits; ++j) {
            float4 a = tile.staged[j][0], b = tile.staged[j][1];
            float blue = tile.staged[j][2].x;
            float dx = x - a.x, dy = y - a.y, far = dy + 4;
            float level = a.z * dx * dx + b.y, slope = a.w * dx;
            float w0 = p0.take(fast_exp2((b.x * dy + slope) * dy + level));
            float w1 = p1.take(fast_exp2((b.x * far + slope) * far + level));
            r0 += w0 * b.z, g0 += w0 * b.w, b0 += w0 * blue;
            r1 += w1 * b.z, g1 += w1 * b.w, b1 += w1 * blue;
        }
        if (__all_sync(~0u, p0.passed < 0 && p1.passed < 0)) break;
    }
    float4 *frame = fit.frame + static_cast<size_t>(object) * fit.width * fit.height;
    size_t at = static_cast<size_t>(y) * fit.width + static_cast<int>(x);
    if (in_0) frame[at] = {r0, g0, b0, fabsf(p0.passed)};
    if (in_1) frame[at + 4 * static_cast<size_t>(fit.width)] = {r1, g1, b1, fabsf(p1.passed)};
}

// Eight values of each lane, added over the warp: lane l is left with the sum of value l / 4.
__device__ __forceinline__ float sum_of_eight(float (&v)[8], int lane) {
#pragma unroll
    for (int half = 4; half >= 1; half /= 2) {
        bool upper = lane & (4 * half);
#pragma unroll
        for (int i = 0; i < half; ++i) {
            float kept = upper ? v[i + half] : v[i], sent = upper ? v[i] : v[i + half];
            v[i] = kept + __shfl_xor_sync(~0u, sent, 4 * half);
        }
    }
    v[0] += __shfl_xor_sync(~0u, v[0], 2);
    return v[0] + __shfl_xor_sync(~0u, v[0], 1);
}

__global__ void __launch_bounds__(128) differentiate_kernel(Fit fit, int across, int regions) {
    __shared__ float4 shared[4][32][3];
    int object = blockIdx.y;
    Tile tile(fit, object, across, regions, shared);
    if (tile.outside || tile.count == 0) return;
    float x = tile.left + tile.lane % TILE, y = tile.top + tile.lane / TILE;
    bool in_0 = x < fit.width && y < fit.height, in_1 = x < fit.width && y + 4 < fit.height;
    Pixel p0{in_0 ? 1.0f : -1.0f}, p1{in_1 ? 1.0f : -1.0f};
    size_t at = (static_cast<size_t>(object) * fit.height + static_cast<int>(y)) * fit.width + static_cast<int>(x);
    size_t below = at + 4 * static_cast<size_t>(fit.width);
    float4 none = {0, 0, 0, 0};
    float4 d0 = in_0 ? fit.pixel_gradients[at] : none, d1 = in_1 ? fit.pixel_gradients[below] : none;
    float4 f0 = in_0 ? fit.frame[at] : none, f1 = in_1 ? fit.frame[below] : none;
    // the sum of weight times dL/dweight over the Gaussians still to come
    float behind_0 = d0.x * f0.x + d0.y * f0.y + d0.z * f0.z + d0.w * (1 - f0.w);
    float behind_1 = d1.x * f1.x + d1.y * f1.y + d1.z * f1.z + d1.w * (1 - f1.w);
    // Of nine sums a Gaussian, every fourth lane adds one and lane 1 the ninth: to its own place, in its own stride.
    bool ninth = tile.lane == 1, adds = ninth || tile.lane % 4 == 0;
    float *own = ninth ? fit.blue_sums + static_cast<size_t>(object) * fit.gaussians
                       : fit.sums + static_cast<size_t>(object) * fit.gaussians * SUMS + tile.lane / 4;
    int stride = ninth ? 1 : SUMS;
    for (int base = 0; base < tile.count; base += 32) {
        int hits = tile.stage(base);
        for (int j = 0; j < hits; ++j) {
            float4 a = tile.staged[j][0], b = tile.staged[j][1];
            float2 c = *reinterpret_cast<const float2 *>(&tile.staged[j][2]);
            float dx = x - a.x, dy = y - a.y, far = dy + 4;
            float level = a.z * dx * dx + b.y, slope = a.w * dx;
            float alpha_0 = fast_exp2((b.x * dy + slope) * dy + level);
            float alpha_1 = fast_exp2((b.x * far + slope) * far + level);
            float w0 = p0.take(alpha_0), w1 = p1.take(alpha_1);
            if (!__any_sync(~0u, w0 + w1 > 0)) continue;
            float by_0 = d0.x * b.z + d0.y * b.w + d0.z * c.x + d0.w;
            float by_1 = d1.x * b.z + d1.y * b.w + d1.z * c.x + d1.w;
            behind_0 -= w0 * by_0;
            behind_1 -= w1 * by_1;
            // dL/dlog alpha; a capped alpha does not move
            float v0 = alpha_0 <= ALPHA_MAX ? w0 * (by_0 - __fdividef(behind_0, fabsf(p0.passed))) : 0.0f;
            float v1 = alpha_1 <= ALPHA_MAX ? w1 * (by_1 - __fdividef(behind_1, fabsf(p1.passed))) : 0.0f;
            float both = v0 + v1, down = v0 * dy + v1 * far, across_it = both * dx;
            float v[8] = {both, across_it, down, across_it * dx, down * dx, v0 * dy * dy + v1 * far * far,
                          w0 * d0.x + w1 * d1.x, w0 * d0.y + w1 * d1.y};
            float blue = w0 * d0.z + w1 * d1.z;
            float sum = sum_of_eight(v, tile.lane);
#pragma unroll
            for (int k = 16; k >= 1; k /= 2) blue += __shfl_xor_sync(~0u, blue, k);
            if (adds) atomicAdd(own + __float_as_int(c.y) * stride, ninth ? blue : sum);
        }
        if (__all_sync(~0u, p0.passed < 0 && p1.passed < 0)) break;
    }
}

// The loss's gradient by a frame's colours and alphas, a region a block. The window reaches RADIUS pixels out of the
// region for the similarity, and its slopes reach as far again.
constexpr int WIDE = REGION + 4 * RADIUS;   // pixels that are read, each way
constexpr int MIDDLE = REGION + 2 * RADIUS; // pixels whose similarity counts
constexpr int RUN = 7, LAST_RUN = 4, SIDE_RUN = 8; // outputs of one thread, of the windows sums
constexpr int WIDE_STRIDE = WIDE + 1, MIDDLE_STRIDE = MIDDLE + 1; // odd: rows fall on different banks
constexpr int LOSS_THREADS = 320;
constexpr int LOSS_FLOATS = 2 * WIDE * WIDE_STRIDE + 4 * WIDE * MIDDLE_STRIDE;
static_assert(MIDDLE % RUN == 0 && WIDE * (MIDDLE / RUN) <= LOSS_THREADS && REGION * REGION / LAST_RUN <= LOSS_THREADS);

__global__ void __launch_bounds__(LOSS_THREADS, 3) loss_kernel(Fit fit, int offset, int across) {
    extern __shared__ float memory[];
    float *sum = memory, *difference = sum + WIDE * WIDE_STRIDE; // of the picture and the target
    float *blurred = difference + WIDE * WIDE_STRIDE; // [4][WIDE][MIDDLE_STRIDE], then slopes [3][MIDDLE][MIDDLE_STRIDE]
    int object = blockIdx.y, thread = threadIdx.x, width = fit.width, height = fit.height;
    int left = (blockIdx.x % across) * REGION, top = (blockIdx.x / across) * REGION, step = *fit.step + offset;
    const float4 *frame = fit.frame + static_cast<size_t>(object) * width * height;
    const uchar4 *rgba = fit.rgba + (static_cast<size_t>(object) * fit.views + fit.order[object * fit.steps + step]) *
                                        width * height;
    const float *ground = fit.grounds + (static_cast<size_t>(object) * fit.steps + step) * 3;

    // Where both images are the background within the windows, nothing is drawn and no Gaussian needs a gradient.
    bool covered = false;
    for (int i = thread; i < WIDE * WIDE; i += LOSS_THREADS) {
        int px = left - 2 * RADIUS + i % WIDE, py = top - 2 * RADIUS + i / WIDE;
        if (px >= 0 && px < width && py >= 0 && py < height)
            covered |= frame[py * width + px].w < 1 || rgba[py * width + px].w > 0;
    }
    if (!__syncthreads_or(covered)) return;

    float gradients[3][LAST_RUN];
    int column = thread % REGION, first_row = thread / REGION * LAST_RUN; // of this thread's pixels in the region
    bool last = thread < REGION * REGION / LAST_RUN;
    float weight = -fit.ssim_weight / (3.0f * width * height);
    float l1_step = (1 - fit.ssim_weight) / (3.0f * width * height);
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
        float shade = ground[channel];
        for (int i = thread; i < WIDE * WIDE; i += LOSS_THREADS) {
            int px = left - 2 * RADIUS + i % WIDE, py = top - 2 * RADIUS + i / WIDE;
            float x = 0, y = 0; // outside the picture is 0
            if (px >= 0 && px < width && py >= 0 && py < height) {
                float4 drawn = frame[py * width + px];
                uchar4 truth = rgba[py * width + px];
                float colour = channel == 0 ? drawn.x : channel == 1 ? drawn.y : drawn.z;
                int byte = channel == 0 ? truth.x : channel == 1 ? truth.y : truth.z;
                x = colour + drawn.w * shade;
                y = truth.w * (1.0f / 255) * (byte * (1.0f / 255) - shade) + shade;
            }
            int at = i / WIDE * WIDE_STRIDE + i % WIDE;
            sum[at] = x + y;
            difference[at] = x - y;
        }
        __syncthreads();
        if (fit.ssim_weight > 0) {
            // along the rows: sum, difference and their squares
            if (thread < WIDE * (MIDDLE / RUN)) {
                int row = thread % WIDE, first = thread / WIDE * RUN;
                float totals[4][RUN] = {};
#pragma unroll
                for (int k = 0; k < RUN + TAPS - 1; ++k) {
                    float s = sum[row * WIDE_STRIDE + first + k], d = difference[row * WIDE_STRIDE + first + k];
                    float ss = s * s, dd = d * d;
#pragma unroll
                    for (int o = 0; o < RUN; ++o)
                        if (k - o >= 0 && k - o < TAPS) {
                            float tap = WINDOW[k - o];
                            totals[0][o] += tap * s, totals[1][o] += tap * d;
                            totals[2][o] += tap * ss, totals[3][o] += tap * dd;
                        }
                }
                for (int m = 0; m < 4; ++m)
#pragma unroll
                    for (int o = 0; o < RUN; ++o)
                        blurred[(m * WIDE + row) * MIDDLE_STRIDE + first + o] = totals[m][o];
            }
            __syncthreads();
            // down the columns, the similarity, and its slopes by the picture's mean and square and by the product
            float totals[4][RUN] = {};
            int x = thread % MIDDLE, first = thread / MIDDLE * RUN;
            bool middle = thread < MIDDLE * (MIDDLE / RUN);
            if (middle)
#pragma unroll
                for (int k = 0; k < RUN + TAPS - 1; ++k)
#pragma unroll
                    for (int m = 0; m < 4; ++m) {
                        float value = blurred[(m * WIDE + first + k) * MIDDLE_STRIDE + x];
#pragma unroll
                        for (int o = 0; o < RUN; ++o)
                            if (k - o >= 0 && k - o < TAPS) totals[m][o] += WINDOW[k - o] * value;
                    }
            __syncthreads(); // the slopes take the place of what they were made from
            if (middle) {
                int px = left - RADIUS + x;
#pragma unroll
                for (int o = 0; o < RUN; ++o) {
                    int py = top - RADIUS + first + o;
                    bool inside = px >= 0 && px < width && py >= 0 && py < height;
                    float s = totals[0][o], d = totals[1][o], ss = totals[2][o], dd = totals[3][o];
                    float mean_x = 0.5f * (s + d), mean_y = 0.5f * (s - d);
                    float product = mean_x * mean_y, squares = mean_x * mean_x + mean_y * mean_y;
                    float n1 = 2 * product + C1, n2 = 0.5f * (ss - dd) - 2 * product + C2;
                    float d1 = squares + C1, d2 = 0.5f * (ss + dd) - squares + C2;
                    float inverse = __fdividef(inside ? 1.0f : 0.0f, d1 * d2), value = n1 * n2 * inverse;
                    float *slope = blurred + (first + o) * MIDDLE_STRIDE + x;
                    slope[0] = 2 * (mean_y * (n2 - n1) - mean_x * value * (d2 - d1)) * inverse;
                    slope[MIDDLE * MIDDLE_STRIDE] = -value * d1 * inverse;
                    slope[2 * MIDDLE * MIDDLE_STRIDE] = 2 * n1 * inverse;
                }
            }
            __syncthreads();
            float sides[3][SIDE_RUN] = {};
            int row = thread % MIDDLE, side = thread / MIDDLE * SIDE_RUN;
            bool sideways = thread < MIDDLE * (REGION / SIDE_RUN);
            if (sideways)
#pragma unroll
                for (int m = 0; m < 3; ++m)
#pragma unroll
                    for (int k = 0; k < SIDE_RUN + TAPS - 1; ++k) {
                        float value = blurred[(m * MIDDLE + row) * MIDDLE_STRIDE + side + k];
#pragma unroll
                        for (int o = 0; o < SIDE_RUN; ++o)
                            if (k - o >= 0 && k - o < TAPS) sides[m][o] += WINDOW[k - o] * value;
                    }
            __syncthreads();
            if (sideways)
#pragma unroll
                for (int m = 0; m < 3; ++m)
#pragma unroll
                    for (int o = 0; o < SIDE_RUN; ++o)
                        blurred[(m * MIDDLE + row) * MIDDLE_STRIDE + side + o] = sides[m][o];
            __syncthreads();
        }
        if (last) {
            float totals[3][LAST_RUN] = {};
            if (fit.ssim_weight > 0)
#pragma unroll
                for (int k = 0; k < LAST_RUN + TAPS - 1; ++k)
#pragma unroll
                    for (int m = 0; m < 3; ++m) {
                        float value = blurred[(m * MIDDLE + first_row + k) * MIDDLE_STRIDE + column];
#pragma unroll
                        for (int o = 0; o < LAST_RUN; ++o)
                            if (k - o >= 0 && k - o < TAPS) totals[m][o] += WINDOW[k - o] * value;
                    }
#pragma unroll
            for (int o = 0; o < LAST_RUN; ++o) {
                int at = (first_row + o + 2 * RADIUS) * WIDE_STRIDE + column + 2 * RADIUS;
                float s = sum[at], d = difference[at], x = 0.5f * (s + d), y = 0.5f * (s - d);
                float slope = totals[0][o] + 2 * x * totals[1][o] + y * totals[2][o];
                gradients[channel][o] = weight * slope + (d > 0 ? l1_step : d < 0 ? -l1_step : 0.0f);
            }
        }
        __syncthreads();
    }
    if (!last) return;
    float alpha_step = fit.alpha_weight / (1.0f * width * height);
#pragma unroll
    for (int o = 0; o < LAST_RUN; ++o) {
        int px = left + column, py = top + first_row + o;
        if (px >= width || py >= height) continue;
        float off = 1 - frame[py * width + px].w - rgba[py * width + px].w * (1.0f / 255);
        float r = gradients[0][o], g = gradients[1][o], b = gradients[2][o];
        // The background shows through, so the image's gradient reaches alpha too.
        float through = r * ground[0] + g * ground[1] + b * ground[2];
        float by_alpha = (off > 0 ? alpha_step : off < 0 ? -alpha_step : 0.0f) - through;
        fit.pixel_gradients[(static_cast<size_t>(object) * height + py) * width + px] = {r, g, b, by_alpha};
    }
}

constexpr int UPDATE_THREADS = 128;

// From the sums over pixels to the raw parameters' gradients, and one step of Adam (Kingma and Ba 2015).
__global__ void __launch_bounds__(UPDATE_THREADS, 6) update_kernel(Fit fit, int offset) {
    __shared__ float gradients[PARAMETERS][UPDATE_THREADS];
    int i = blockIdx.x * blockDim.x + threadIdx.x, object = blockIdx.y;
    size_t N = fit.gaussians;
    if (i >= N) return;
    int step = *fit.step + offset;
    size_t at = object * N + i;
    float4 *stored = reinterpret_cast<float4 *>(fit.sums + SUMS * at);
    float4 first_sums = stored[0], more_sums = stored[1];
    float sums[SUMS] = {first_sums.x, first_sums.y, first_sums.z, first_sums.w,
                        more_sums.x, more_sums.y, more_sums.z, more_sums.w};
    float blue = fit.blue_sums[at];
    float *raw = fit.raw + object * PARAMETERS * N + i, *moments = fit.moments + object * 2 * PARAMETERS * N + i;
    float values[PARAMETERS], g[PARAMETERS] = {};
#pragma unroll
    for (int k = 0; k < PARAMETERS; ++k) values[k] = raw[k * N];
    bool touched = blue != 0;
    for (int k = 0; k < SUMS; ++k) touched |= sums[k] != 0;
    if (touched) {
        const float *camera = camera_of(fit, object, step);
        Splat s(values, 1, camera, fit.width, fit.height);
        float inverse = 1.0f / s.determinant;
        float a = (s.c11 + BLUR) * inverse, b = -s.c01 * inverse, d = (s.c00 + BLUR) * inverse;
        float ga = -0.5f * sums[3], gb = -0.5f * sums[4], gd = -0.5f * sums[5];
        // dL/dcovariance = -C G C, with C the inverse covariance (the conic) and G its gradient
        float h00 = a * ga + b * gb, h01 = a * gb + b * gd, h10 = b * ga + d * gb, h11 = b * gb + d * gd;
        float v00 = -(h00 * a + h01 * b), v01 = -(h00 * b + h01 * d), v11 = -(h10 * b + h11 * d);
        float g00 = 0, g02 = 0, g11 = 0, g12 = 0, r[3][3];
        for (int k = 0; k < 3; ++k) {
            float gu = 2 * (v00 * s.u[k] + v01 * s.w[k]), gw = 2 * (v01 * s.u[k] + v11 * s.w[k]);
            float x = s.j00 * gu, y = s.j11 * gw, z = s.j02 * gu + s.j12 * gw;
            g00 += s.scale[k] * gu * s.n[k][0];
            g02 += s.scale[k] * gu * s.n[k][2];
            g11 += s.scale[k] * gw * s.n[k][1];
            g12 += s.scale[k] * gw * s.n[k][2];
            for (int c = 0; c < 3; ++c) r[k][c] = s.scale[k] * (camera[c] * x + camera[4 + c] * y + camera[8 + c] * z);
            g[7 + k] = s.scale[k] * (x * s.n[k][0] + y * s.n[k][1] + z * s.n[k][2]);
        }
        float q0 = s.q[0], q1 = s.q[1], q2 = s.q[2], q3 = s.q[3];
        float e[4] = {
            2 * (q3 * (r[0][1] - r[1][0]) + q2 * (r[2][0] - r[0][2]) + q1 * (r[1][2] - r[2][1])),
            2 * (q2 * (r[1][0] + r[0][1]) + q3 * (r[2][0] + r[0][2]) + q0 * (r[1][2] - r[2][1]) -
                 2 * q1 * (r[1][1] + r[2][2])),
            2 * (q1 * (r[1][0] + r[0][1]) + q3 * (r[2][1] + r[1][2]) + q0 * (r[2][0] - r[0][2]) -
                 2 * q2 * (r[0][0] + r[2][2])),
            2 * (q1 * (r[2][0] + r[0][2]) + q2 * (r[2][1] + r[1][2]) + q0 * (r[0][1] - r[1][0]) -
                 2 * q3 * (r[0][0] + r[1][1])),
        };
        float along = e[0] * q0 + e[1] * q1 + e[2] * q2 + e[3] * q3;
        for (int k = 0; k < 4; ++k) g[3 + k] = (e[k] - along * s.q[k]) * s.inverse_length;

        // the mean: through its place in the frame and through the Jacobian
        float gu = a * sums[1] + b * sums[2], gv = d * sums[2] + b * sums[1], iz = 1.0f / s.z;
        float gx = s.j00 * gu, gy = s.j11 * gv;
        float gz = -(s.x * gx + s.y * gy) * iz - (s.j00 * g00 + s.j11 * g11) * iz;
        // j02 = -fx x / z^2, or where the ratio x / z is clamped, -fx limit / z
        gx -= s.inside_x ? s.j00 * iz * g02 : 0.0f;
        gy -= s.inside_y ? s.j11 * iz * g12 : 0.0f;
        gz -= (s.inside_x ? 2.0f : 1.0f) * s.j02 * iz * g02 + (s.inside_y ? 2.0f : 1.0f) * s.j12 * iz * g12;
        for (int k = 0; k < 3; ++k) g[k] = camera[k] * gx + camera[4 + k] * gy + camera[8 + k] * gz;

        g[10] = sums[0] * (1 - sigmoid(values[10]));
        float by_colour[3] = {sums[6], sums[7], blue};
        for (int k = 0; k < 3; ++k) {
            float colour = sigmoid(values[11 + k]);
            g[11 + k] = by_colour[k] * colour * (1 - colour);
        }
    }
    if (touched) {
        stored[0] = stored[1] = {0, 0, 0, 0};
        fit.blue_sums[at] = 0;
    }
#pragma unroll
    for (int k = 0; k < PARAMETERS; ++k) gradients[k][threadIdx.x] = g[k];
    asm volatile("" ::: "memory"); // keeps the compiler from mixing the two parts, which would take too many registers
    const float *rates = fit.rates + step * RATES;
    float correction = rates[PARAMETERS];
    constexpr int HALF = PARAMETERS / 2;
#pragma unroll 1
    for (int from = 0; from < PARAMETERS; from += HALF) {
        // all reads before any write: none then waits for another
        float value[HALF], first[HALF], second[HALF];
#pragma unroll
        for (int k = 0; k < HALF; ++k) {
            value[k] = raw[(from + k) * N];
            first[k] = moments[(from + k) * N];
            second[k] = moments[(PARAMETERS + from + k) * N];
        }
#pragma unroll
        for (int k = 0; k < HALF; ++k) {
            float gradient = gradients[from + k][threadIdx.x];
            float m = BETA_1 * first[k] + (1 - BETA_1) * gradient;
            float v = BETA_2 * second[k] + (1 - BETA_2) * gradient * gradient;
            moments[(from + k) * N] = m;
            moments[(PARAMETERS + from + k) * N] = v;
            raw[(from + k) * N] = value[k] - rates[from + k] * __fdividef(m, sqrtf(v * correction) + EPSILON);
        }
    }
}

inline int parts(int count, int size) { return (count + size - 1) / size; }
inline int regions_across(const Fit *fit) { return parts(fit->width, REGION); }
inline int regions_of(const Fit *fit) { return regions_across(fit) * parts(fit->height, REGION); }

} // namespace

// Each call queues its kernels on the stream and returns CUDA's error code. `offset` is added to the device's counter.
extern "C" {

int set_window(const float *window) { return cudaMemcpyToSymbol(WINDOW, window, sizeof(WINDOW)); }

int project(const Fit *fit, int offset, cudaStream_t stream) {
    project_kernel<<<dim3(parts(fit->gaussians, 128), fit->objects), 128, 0, stream>>>(*fit, offset);
    return cudaGetLastError();
}

int draw(const Fit *fit, int, cudaStream_t stream) {
    int across = regions_across(fit), regions = regions_of(fit);
    reorder_kernel<<<dim3(parts(fit->gaussians, 256), fit->objects), 256, 0, stream>>>(*fit);
    list_kernel<<<dim3(parts(regions, 4), fit->objects), 128, 0, stream>>>(*fit, across, regions);
    draw_kernel<<<dim3(4 * regions, fit->objects), 128, 0, stream>>>(*fit, across, regions);
    return cudaGetLastError();
}

int loss(const Fit *fit, int offset, cudaStream_t stream) {
    int bytes = LOSS_FLOATS * sizeof(float);
    if (int error = cudaFuncSetAttribute(loss_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return error;
    loss_kernel<<<dim3(regions_of(fit), fit->objects), LOSS_THREADS, bytes, stream>>>(*fit, offset, regions_across(fit));
    return cudaGetLastError();
}

int differentiate(const Fit *fit, int, cudaStream_t stream) {
    int across = regions_across(fit), regions = regions_of(fit);
    differentiate_kernel<<<dim3(4 * regions, fit->objects), 128, 0, stream>>>(*fit, across, regions);
    return cudaGetLastError();
}

int update(const Fit *fit, int offset, cudaStream_t stream) {
    update_kernel<<<dim3(parts(fit->gaussians, UPDATE_THREADS), fit->objects), UPDATE_THREADS, 0, stream>>>(*fit, offset);
    return cudaGetLastError();
}

} // extern "C"
