/* A decoder's arithmetic on x86-64 CPUs, for steps of few rows: matrix products, and whole layers of a step.
 *
 * Arithmetic is float32; weights and KV at rest are bfloat16, float16 or float32 and are widened in registers. So a step
 * reads the bytes of the storage dtype and needs no 16-bit arithmetic of the CPU. Every sum runs in one order whatever the
 * number of rows: a sequence's numbers do not depend on who shares the step.
 *
 * Built without linking OpenMP: the GOMP_* symbols resolve to the runtime that torch has loaded (see kernels.py), so that
 * one process has one pool of threads. Nothing here allocates, and nothing is read or written outside the given extents.
 */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
enum { LEVEL_AVX2 = 2, LEVEL_AVX512 = 3 };
enum { OUTPUT_CHUNK = 32, DEPTH_BLOCK = 1024, MOST_GROUP = 32, MOST_LAYERS = 256 };

INLINE float widen_bf16(uint16_t value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}

/* Round to nearest, ties to even; a NaN stays one. */
INLINE uint16_t narrow_bf16(float value) {
    union { float number; uint32_t bits; } both = {value};
    if ((both.bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((both.bits >> 16) | 0x40);
    return (uint16_t)((both.bits + 0x7fffu + ((both.bits >> 16) & 1)) >> 16);
}

/* e^x within two units in the last place, in a form that compilers vectorise (the polynomial is Cephes' expf). */
INLINE float exponential(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    const float whole = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* rounds to an integer */
    const float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    union { int32_t bits; float number; } scale = {((int32_t)whole + 127) << 23};
    return power * scale.number;
}

AVX2 INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#define LOAD8_BF16(p) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define LOAD8_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define LOAD16_BF16(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define LOAD16_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define SAME(value) (value)

/* For one instruction set and storage type:
 *   NAME_tile    `tile` rows by `outputs` columns of y over one block of the depth
 *   NAME_linear  y[:, n0 .. n1] = x · wᵀ; y has `width` columns
 *   NAME_gate    silu(gate) × up
 *   NAME_attend  one row's queries of one KV head over its cached tokens
 * LOAD widens LANES stored values to float32. */
#define DEFINE_KERNELS(NAME, TARGET, TYPE, VECTOR, LANES, ZERO, ONES, LOADX, STOREX, LOAD, FMA, SUM, TAIL)                \
    TARGET INLINE void NAME##_tile(const int tile, const int outputs, float *y, const float *x, const TYPE *w,           \
                                   ptrdiff_t width, ptrdiff_t depth, ptrdiff_t k0, ptrdiff_t k1) {                       \
        const ptrdiff_t kv = k0 + (k1 - k0) / (LANES) * (LANES);                                                         \
        VECTOR sums[6][4];                                                                                               \
        _Pragma("GCC unroll 6") for (int r = 0; r < tile; r++)                                                           \
            _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) sums[r][n] = ZERO;                                 \
        for (ptrdiff_t k = k0; k < kv; k += (LANES)) {                                                                   \
            VECTOR pw[4];                                                                                                \
            _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) pw[n] = LOAD(w + n * depth + k);                   \
            _Pragma("GCC unroll 6") for (int r = 0; r < tile; r++) {                                                     \
                const VECTOR px = LOADX(x + r * depth + k);                                                              \
                _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) sums[r][n] = FMA(px, pw[n], sums[r][n]);       \
            }                                                                                                            \
        }                                                                                                                \
        _Pragma("GCC unroll 6") for (int r = 0; r < tile; r++)                                                           \
            _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) {                                                  \
                float total = SUM(sums[r][n]);                                                                           \
                for (ptrdiff_t k = kv; k < k1; k++) total += x[r * depth + k] * TAIL(w[n * depth + k]);                  \
                float *out = y + r * width + n;                                                                          \
                *out = k0 ? *out + total : total;                                                                        \
            }                                                                                                            \
    }                                                                                                                    \
    TARGET INLINE void NAME##_rows(const int outputs, float *y, const float *x, const TYPE *w, ptrdiff_t rows,           \
                                   ptrdiff_t width, ptrdiff_t depth, ptrdiff_t k0, ptrdiff_t k1) {                       \
        ptrdiff_t m = 0;                                                                                                 \
        /* As many sums as there are registers: 24 of 32 with AVX-512, 8 of 16 with AVX2. */                             \
        for (; (LANES) == 16 && rows - m >= 6 && rows - m != 8; m += 6)                                                  \
            NAME##_tile(6, outputs, y + m * width, x + m * depth, w, width, depth, k0, k1);                              \
        for (; (LANES) == 16 && rows - m >= 4; m += 4)                                                                   \
            NAME##_tile(4, outputs, y + m * width, x + m * depth, w, width, depth, k0, k1);                              \
        for (; rows - m >= 2; m += 2)                                                                                    \
            NAME##_tile(2, outputs, y + m * width, x + m * depth, w, width, depth, k0, k1);                              \
        if (m < rows) NAME##_tile(1, outputs, y + m * width, x + m * depth, w, width, depth, k0, k1);                    \
    }                                                                                                                    \
    TARGET static void NAME##_linear(float *y, const float *x, const void *weight, ptrdiff_t rows, ptrdiff_t width,      \
                                     ptrdiff_t depth, ptrdiff_t n0, ptrdiff_t n1) {                                      \
        const TYPE *w = weight;                                                                                          \
        for (ptrdiff_t k0 = 0; k0 < depth; k0 += DEPTH_BLOCK) {                                                          \
            const ptrdiff_t k1 = k0 + DEPTH_BLOCK < depth ? k0 + DEPTH_BLOCK : depth;                                    \
            ptrdiff_t n = n0;                                                                                            \
            for (; n + 4 <= n1; n += 4) NAME##_rows(4, y + n, x, w + n * depth, rows, width, depth, k0, k1);             \
            for (; n < n1; n++) NAME##_rows(1, y + n, x, w + n * depth, rows, width, depth, k0, k1);                     \
        }                                                                                                                \
    }                                                                                                                    \
    TARGET __attribute__((unused)) static void NAME##_gate(float *out, const float *gate, const float *up, ptrdiff_t count) { \
        for (ptrdiff_t i = 0; i < count; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];                 \
    }                                                                                                                    \
    TARGET static void NAME##_attend(float *out, const float *q, const void *k_cache, const void *v_cache,                \
                                     const int64_t *blocks, ptrdiff_t first, ptrdiff_t stop, ptrdiff_t block_tokens,      \
                                     int group, int dim, float scale, float *scores) {                                    \
        const ptrdiff_t length = stop - first;                                                                            \
        float most[MOST_GROUP];                                                                                           \
        for (int g = 0; g < group; g++) most[g] = -INFINITY;                                                              \
        for (ptrdiff_t at = first; at < stop;) {                                                                          \
            const ptrdiff_t offset = at % block_tokens;                                                                   \
            const ptrdiff_t run = block_tokens - offset < stop - at ? block_tokens - offset : stop - at;                  \
            const TYPE *keys = (const TYPE *)k_cache + (blocks[at / block_tokens] * block_tokens + offset) * dim;         \
            for (ptrdiff_t t = 0; t < run; t++, keys += dim)                                                              \
                for (int g = 0; g < group; g++) {                                                                         \
                    VECTOR sum = ZERO;                                                                                    \
                    for (int d = 0; d < dim; d += (LANES)) sum = FMA(LOADX(q + g * dim + d), LOAD(keys + d), sum);        \
                    const float score = SUM(sum) * scale;                                                                 \
                    scores[g * length + at - first + t] = score;                                                          \
                    most[g] = score > most[g] ? score : most[g];                                                          \
                }                                                                                                         \
            at += run;                                                                                                    \
        }                                                                                                                 \
        for (int g = 0; g < group; g++) {                                                                                 \
            float total = 0, *own = scores + g * length;                                                                  \
            for (ptrdiff_t t = 0; t < length; t++) total += own[t] = exponential(own[t] - most[g]);                              \
            for (ptrdiff_t t = 0; t < length; t++) own[t] /= total;                                                       \
            memset(out + g * dim, 0, sizeof(float) * dim);                                                                \
        }                                                                                                                 \
        for (ptrdiff_t at = first; at < stop;) {                                                                          \
            const ptrdiff_t offset = at % block_tokens;                                                                   \
            const ptrdiff_t run = block_tokens - offset < stop - at ? block_tokens - offset : stop - at;                  \
            const TYPE *values = (const TYPE *)v_cache + (blocks[at / block_tokens] * block_tokens + offset) * dim;       \
            for (int d = 0; d < dim; d += (LANES))                                                                        \
                for (int g = 0; g < group; g++) {                                                                         \
                    VECTOR sum = LOADX(out + g * dim + d);                                                                \
                    const float *own = scores + g * length + at - first;                                                  \
                    for (ptrdiff_t t = 0; t < run; t++) sum = FMA(ONES(own[t]), LOAD(values + t * dim + d), sum);         \
                    STOREX(out + g * dim + d, sum);                                                                       \
                }                                                                                                         \
            at += run;                                                                                                    \
        }                                                                                                                 \
    }

#define DEFINE_AVX2(NAME, TYPE, LOAD, TAIL)                                                                               \
    DEFINE_KERNELS(NAME, AVX2, TYPE, __m256, 8, _mm256_setzero_ps(), _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps,   \
                   LOAD, _mm256_fmadd_ps, sum8, TAIL)
#define DEFINE_AVX512(NAME, TYPE, LOAD, TAIL)                                                                             \
    DEFINE_KERNELS(NAME, AVX512, TYPE, __m512, 16, _mm512_setzero_ps(), _mm512_set1_ps, _mm512_loadu_ps,                  \
                   _mm512_storeu_ps, LOAD, _mm512_fmadd_ps, _mm512_reduce_add_ps, TAIL)

DEFINE_AVX2(f32_avx2, float, _mm256_loadu_ps, SAME)
DEFINE_AVX2(bf16_avx2, uint16_t, LOAD8_BF16, widen_bf16)
DEFINE_AVX2(f16_avx2, uint16_t, LOAD8_F16, _cvtsh_ss)
DEFINE_AVX512(f32_avx512, float, _mm512_loadu_ps, SAME)
DEFINE_AVX512(bf16_avx512, uint16_t, LOAD16_BF16, widen_bf16)
DEFINE_AVX512(f16_avx512, uint16_t, LOAD16_F16, _cvtsh_ss)

typedef void linear_fn(float *, const float *, const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t);
typedef void attend_fn(float *, const float *, const void *, const void *, const int64_t *, ptrdiff_t, ptrdiff_t,
                       ptrdiff_t, int, int, float, float *);

typedef void gate_fn(float *, const float *, const float *, ptrdiff_t);

static gate_fn *const GATE[2] = {f32_avx2_gate, f32_avx512_gate};
static linear_fn *const LINEAR[2][3] = {{f32_avx2_linear, bf16_avx2_linear, f16_avx2_linear},
                                        {f32_avx512_linear, bf16_avx512_linear, f16_avx512_linear}};
static attend_fn *const ATTEND[2][3] = {{f32_avx2_attend, bf16_avx2_attend, f16_avx2_attend},
                                        {f32_avx512_attend, bf16_avx512_attend, f16_avx512_attend}};

/* 0: this CPU has neither AVX2 with FMA and F16C nor more; 2: AVX2; 3: AVX-512. */
API int lp_instruction_set(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
               ? LEVEL_AVX512 : LEVEL_AVX2;
}

/* dtype: 0 float32, 1 bfloat16, 2 float16. level: what lp_instruction_set returned, or less. Row-major and contiguous:
 * x [rows, depth], w [width, depth], y [rows, width]. Returns 0, or -1 for a dtype or level that it does not have. */
API int lp_linear(float *y, const float *x, const void *w, int64_t rows, int64_t width, int64_t depth, int dtype,
                  int level) {
    if (dtype < 0 || dtype > 2 || (level != LEVEL_AVX2 && level != LEVEL_AVX512)) return -1;
    linear_fn *const linear = LINEAR[level - LEVEL_AVX2][dtype];
    const ptrdiff_t chunks = (width + OUTPUT_CHUNK - 1) / OUTPUT_CHUNK;
#pragma omp parallel for schedule(dynamic, 1)
    for (ptrdiff_t chunk = 0; chunk < chunks; chunk++) {
        const ptrdiff_t n0 = chunk * OUTPUT_CHUNK, n1 = n0 + OUTPUT_CHUNK < width ? n0 + OUTPUT_CHUNK : width;
        linear(y, x, w, rows, width, depth, n0, n1);
    }
    return 0;
}

/* One decoder layer. Norms and biases are float32 (absent: NULL), matrices and cache in the storage dtype.
 * cache: [2 × kv heads, slots, head_dim], keys before values. window: 0 for full attention. */
typedef struct {
    const float *input_norm, *mlp_norm, *q_norm, *k_norm;
    const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias;
    const void *qkv, *output, *gate_up, *down;
    void *cache;
    int64_t window;
} lp_layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate, slots, block_tokens;
    float eps, scale;
    int32_t dtype, level;
} lp_model;

/* The step. position, slot: of each row. blocks: block ids of all sequences, those of row r from blocks[block_start[r]].
 * cosine, sine: [rows, head_dim], the sine negative in its first half. */
typedef struct {
    int64_t rows, longest;
    const int64_t *position, *slot, *blocks, *block_start;
    const float *cosine, *sine;
} lp_step;

/* Floats that lp_layers needs as scratch for so many rows and threads. */
API int64_t lp_scratch(const lp_model *model, int64_t rows, int64_t longest, int64_t threads) {
    const int64_t group = model->heads / model->kv_heads;
    const int64_t packed = (model->heads + 2 * model->kv_heads) * model->head_dim;
    return rows * (2 * model->hidden + packed + model->heads * model->head_dim + 3 * model->intermediate) +
           threads * group * longest;
}

typedef struct { atomic_int arrived, turn; } barrier_t;

/* Threads that compute meet here a hundred times a step: a futex each time would cost more than the work between. Who
 * waits long yields, for on shared cores the others may be waiting for this very core. */
static void meet(barrier_t *barrier, int threads) {
    if (threads == 1) return;
    const int turn = atomic_load_explicit(&barrier->turn, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->turn, turn + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&barrier->turn, memory_order_acquire) == turn; spins++) {
        if (spins < 2000) _mm_pause();
        else sched_yield();
    }
}

static void norm_row(float *out, const float *x, const float *weight, ptrdiff_t size, float eps) {
    float sums[8] = {0};
    ptrdiff_t i = 0;
    for (; i + 8 <= size; i += 8)
        for (int lane = 0; lane < 8; lane++) sums[lane] += x[i + lane] * x[i + lane];
    float total = 0;
    for (; i < size; i++) total += x[i] * x[i];
    for (int lane = 0; lane < 8; lane++) total += sums[lane];
    const float factor = 1.0f / sqrtf(total / (float)size + eps);
    for (i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
}

AVX2 static void store_row(void *cache, int64_t at, const float *values, int dim, int dtype) {
    if (dtype == FLOAT32) {
        memcpy((float *)cache + at, values, sizeof(float) * dim);
        return;
    }
    uint16_t *out = (uint16_t *)cache + at;
    for (int d = 0; d < dim; d++) out[d] = dtype == BFLOAT16 ? narrow_bf16(values[d]) : _cvtss_sh(values[d], 0);
}

/* Norm (if the model norms heads) and rotate one head in place. */
static void turn_head(float *head, const float *norm, const float *cosine, const float *sine, int dim, float eps) {
    float turned[1024];
    if (norm) norm_row(head, head, norm, dim, eps);
    const int half = dim / 2;
    for (int d = 0; d < dim; d++) turned[d] = head[d] * cosine[d] + head[d < half ? d + half : d - half] * sine[d];
    memcpy(head, turned, sizeof(float) * dim);
}

/* Adds bias to columns [n0, n1) of y. */
static void add_bias(float *y, const float *bias, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t n0, ptrdiff_t n1) {
    if (bias)
        for (ptrdiff_t m = 0; m < rows; m++)
            for (ptrdiff_t n = n0; n < n1; n++) y[m * width + n] += bias[n];
}

/* Take the next chunk of `size` columns of `width`; 0 when none is left. */
static int take(atomic_int *next, ptrdiff_t width, ptrdiff_t size, ptrdiff_t *n0, ptrdiff_t *n1) {
    *n0 = (ptrdiff_t)atomic_fetch_add_explicit(next, 1, memory_order_relaxed) * size;
    if (*n0 >= width) return 0;
    *n1 = *n0 + size < width ? *n0 + size : width;
    return 1;
}

/* Run a step through all layers: x float32 [rows, hidden] is replaced by the result, and keys and values are stored.
 * head_dim: a multiple of 16, at most 1024; heads a multiple of kv_heads, at most 32 times as many; at most 256 layers.
 * scratch: lp_scratch floats. Returns 0, or -1 for sizes that it does not take. */
API int lp_layers(float *x, const lp_layer *layers, const lp_model *model, const lp_step *step, float *scratch,
                  int64_t most_threads) {
    const ptrdiff_t rows = step->rows, hidden = model->hidden, dim = model->head_dim, inner = model->intermediate;
    const ptrdiff_t heads = model->heads, kv_heads = model->kv_heads, group = heads / kv_heads;
    const ptrdiff_t packed = (heads + 2 * kv_heads) * dim, attended = heads * dim;
    const int dtype = model->dtype, level = model->level;
    if (dtype < 0 || dtype > 2 || (level != LEVEL_AVX2 && level != LEVEL_AVX512) || dim % 16 || dim > 1024 ||
        heads % kv_heads || group > MOST_GROUP || model->layers > MOST_LAYERS)
        return -1;
    linear_fn *const linear = LINEAR[level - LEVEL_AVX2][dtype];
    attend_fn *const attend = ATTEND[level - LEVEL_AVX2][dtype];
    gate_fn *const gate = GATE[level - LEVEL_AVX2];
    const size_t item = dtype == FLOAT32 ? 4 : 2;
    const size_t head_bytes = (size_t)model->slots * dim * item;

    float *normed = scratch, *added = normed + rows * hidden, *qkv = added + rows * hidden, *mixed = qkv + rows * packed;
    float *gate_up = mixed + rows * attended, *gated = gate_up + rows * 2 * inner;
    float *scores = gated + rows * inner;
    static const ptrdiff_t CHUNK = OUTPUT_CHUNK;
    barrier_t barrier = {0};
    atomic_int next[MOST_LAYERS][5];
    memset(next, 0, sizeof(next[0]) * model->layers);

#pragma omp parallel num_threads((int)most_threads)
    {
        const int threads = omp_get_num_threads(), me = omp_get_thread_num();
        float *own_scores = scores + (ptrdiff_t)me * group * step->longest;
        ptrdiff_t n0, n1;
        for (int64_t index = 0; index < model->layers; index++) {
            const lp_layer *layer = layers + index;
            char *cache = layer->cache;

            for (ptrdiff_t m = me; m < rows; m += threads)
                norm_row(normed + m * hidden, x + m * hidden, layer->input_norm, hidden, model->eps);
            meet(&barrier, threads);
            while (take(&next[index][0], packed, CHUNK, &n0, &n1)) {
                linear(qkv, normed, layer->qkv, rows, packed, hidden, n0, n1);
                add_bias(qkv, layer->qkv_bias, rows, packed, n0, n1);
            }
            meet(&barrier, threads);
            for (ptrdiff_t task = me; task < rows * (heads + 2 * kv_heads); task += threads) {
                const ptrdiff_t m = task / (heads + 2 * kv_heads), head = task % (heads + 2 * kv_heads);
                float *values = qkv + m * packed + head * dim;
                if (head < heads + kv_heads)
                    turn_head(values, head < heads ? layer->q_norm : layer->k_norm, step->cosine + m * dim,
                              step->sine + m * dim, (int)dim, model->eps);
                if (head >= heads)
                    store_row(cache + (head - heads) * head_bytes, step->slot[m] * dim, values, (int)dim, dtype);
            }
            meet(&barrier, threads);
            while (take(&next[index][1], rows * kv_heads, 1, &n0, &n1)) {
                const ptrdiff_t m = n0 / kv_heads, head = n0 % kv_heads, stop = step->position[m] + 1;
                const ptrdiff_t first = layer->window && stop > layer->window ? stop - layer->window : 0;
                attend(mixed + m * attended + head * group * dim, qkv + m * packed + head * group * dim,
                       cache + head * head_bytes, cache + (kv_heads + head) * head_bytes,
                       step->blocks + step->block_start[m], first, stop, model->block_tokens, (int)group, (int)dim,
                       model->scale, own_scores);
            }
            meet(&barrier, threads);
            while (take(&next[index][2], hidden, CHUNK, &n0, &n1)) {
                linear(added, mixed, layer->output, rows, hidden, attended, n0, n1);
                add_bias(added, layer->output_bias, rows, hidden, n0, n1);
                for (ptrdiff_t m = 0; m < rows; m++)
                    for (ptrdiff_t n = n0; n < n1; n++) x[m * hidden + n] += added[m * hidden + n];
            }
            meet(&barrier, threads);
            for (ptrdiff_t m = me; m < rows; m += threads)
                norm_row(normed + m * hidden, x + m * hidden, layer->mlp_norm, hidden, model->eps);
            meet(&barrier, threads);
            while (take(&next[index][3], inner, CHUNK, &n0, &n1)) {
                linear(gate_up, normed, layer->gate_up, rows, 2 * inner, hidden, n0, n1);
                linear(gate_up, normed, layer->gate_up, rows, 2 * inner, hidden, inner + n0, inner + n1);
                add_bias(gate_up, layer->gate_up_bias, rows, 2 * inner, n0, n1);
                add_bias(gate_up, layer->gate_up_bias, rows, 2 * inner, inner + n0, inner + n1);
                for (ptrdiff_t m = 0; m < rows; m++)
                    gate(gated + m * inner + n0, gate_up + m * 2 * inner + n0, gate_up + m * 2 * inner + inner + n0, n1 - n0);
            }
            meet(&barrier, threads);
            while (take(&next[index][4], hidden, CHUNK, &n0, &n1)) {
                linear(added, gated, layer->down, rows, hidden, inner, n0, n1);
                add_bias(added, layer->down_bias, rows, hidden, n0, n1);
                for (ptrdiff_t m = 0; m < rows; m++)
                    for (ptrdiff_t n = n0; n < n1; n++) x[m * hidden + n] += added[m * hidden + n];
            }
            meet(&barrier, threads);
        }
    }
    return 0;
}
